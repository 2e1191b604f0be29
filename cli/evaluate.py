"""`retr eval`: retrieval metrics over labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    Debug,
    Json,
    Ks,
    MetricName,
    Options,
    Quiet,
    WorkspaceFolder,
    parsed_ks,
    parsed_metric,
    parsed_options,
)
from cli.output import Output

if TYPE_CHECKING:
    from retrieval.quality.evaluation import Evaluation

Queries = Annotated[
    Path | None,
    typer.Option(
        help="The embeddings folder of the queries.  [default: the last test split]",
        show_default=False,
    ),
]
Database = Annotated[
    Path | None,
    typer.Option(
        help="The embeddings folder to search.  [default: the last that was encoded]",
        show_default=False,
    ),
]


def evaluate(
    queries: Queries = None,
    database: Database = None,
    metric: MetricName = None,
    k: Ks = "1,5,10,100",
    index: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate what this index of the database finds, rather than exact search.",
            show_default=False,
        ),
    ] = None,
    options: Options = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure precision, recall and mAP over labels: an image is relevant if its label is.

    Queries that are in the database themselves are left out of their own ranking, so the same
    folder may be given twice.

    Example: retr eval --queries test-embeddings --database train-embeddings
    """
    from retrieval.indexing import check_indexed, check_same_encoder, open_index
    from retrieval.quality.evaluation import Labelled, evaluate, evaluate_index
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role, Workspace

    output = Output(json, quiet)
    place = Workspace.at(workspace)
    asked = open_embeddings(
        queries or place.needed(Role.QUERIES, "retr encode --split test", "--queries")
    )
    searched = open_embeddings(database or place.needed(Role.DATABASE, "retr encode", "--database"))
    check_same_encoder(
        asked.facts.encoder, searched.facts.encoder, str(asked.folder), str(searched.folder)
    )
    ks = parsed_ks(k)
    if index is None:
        chosen = parsed_metric(metric) or searched.facts.metric
        result = evaluate(Labelled.of(asked), Labelled.of(searched), chosen, ks)
    else:
        opened = open_index(index, parsed_options(options))
        check_indexed(opened, searched)
        result = evaluate_index(
            Labelled.of(asked), Labelled.of(searched), opened.index, opened.facts.metric, ks
        )
    _print(output, result, ks)
    output.document(
        result.to_json()
        | {"queries": str(asked.folder), "database": str(searched.folder)}
        | {"counts": {"queries": result.queries, "database": result.database}}
    )


def print_evaluation(output: Output, result: "Evaluation", ks: list[int]) -> None:
    """Print the means, the classes, and what each number means."""
    output.say(f"{result.queries:,} queries against {result.database:,} images, {result.metric}")
    for count, why in (
        (result.unlabelled, "have no label"),
        (result.without_relevant, "have nothing relevant to find"),
    ):
        if count:
            output.say(f"left out: {count:,} queries that {why}")
    output.say()
    output.table(
        ("k", *(f"{k:,}" for k in ks)),
        [
            ("P@k", *(f"{result.precision_at[k]:.4f}" for k in ks)),
            ("  ±", *(_margin(result.margins.precision_at[k]) for k in ks)),
            ("recall@k", *(f"{result.recall_at[k]:.4f}" for k in ks)),
            ("mAP@k", *(f"{result.map_at[k]:.4f}" for k in ks)),
            ("  ±", *(_margin(result.margins.map_at[k]) for k in ks)),
        ],
    )
    output.say()
    overall = [
        (name, value, margin)
        for name, value, margin in (
            ("mAP", result.map, result.margins.map),
            ("R-precision", result.r_precision, result.margins.r_precision),
            ("kNN accuracy", result.knn_accuracy, result.margins.knn_accuracy),
        )
        if value is not None
    ]
    if overall:
        output.say(
            "   ".join(
                f"{name} {value:.4f}" + ("" if margin is None else f" ± {margin:.4f}")
                for name, value, margin in overall
            )
        )
        output.say()


def _margin(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _print(output: Output, result: "Evaluation", ks: list[int]) -> None:
    from retrieval.quality.metrics import DEFINITIONS

    print_evaluation(output, result, ks)
    output.table(
        ("class", "queries", "mAP", *(f"P@{k}" for k in ks)),
        [
            (
                label,
                f"{of.queries:,}",
                "–" if of.map is None else f"{of.map:.4f}",
                *(f"{of.precision_at[k]:.4f}" for k in ks),
            )
            for label, of in result.per_class.items()
        ],
    )
    output.say()
    for name in result.defined:
        output.say(DEFINITIONS[name])

"""`retr eval`: retrieval metrics over labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Ks,
    MetricName,
    Options,
    parsed_choice,
    parsed_ks,
    parsed_metric,
    parsed_options,
)
from cli.output import Output
from cli.provenance import known_provenance

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.quality.evaluation import Evaluation
    from retrieval.quality.exchange import Difference
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.protocols import Sides
    from retrieval.storage.shards import Embeddings
    from retrieval.workspace import Workspace

Queries = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The embeddings folder of the queries.  [default: the last test split]",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The embeddings folder to search.  [default: the last that was encoded]",
    ),
]


@command(threads=True)
def evaluate(
    output: Output,
    workspace: "Workspace",
    queries: Queries = None,
    database: Database = None,
    metric: MetricName = None,
    k: Ks = "1,5,10,100",
    index: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Evaluate what this index of the database finds, rather than exact search.",
        ),
    ] = None,
    options: Options = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="official, unseen, hashing-54k or hashing-59k, where the queries are a test "
            "split and the database is its training split.  [default: all queries, the whole "
            "database]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of a hashing protocol.")] = 0,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Keep the draw of a hashing protocol in this file, or take the one in it.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the measures of each query here, as Parquet."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare with an evaluation that --save wrote, query by query: differences, "
            "their intervals, and how likely chance is.",
        ),
    ] = None,
    export_run: Annotated[
        Path | None,
        typer.Option(
            help="Write the rankings up to the largest k, as trec_eval and ranx read them.",
        ),
    ] = None,
    export_qrels: Annotated[
        Path | None,
        typer.Option(
            help="Write what is relevant to each query, as trec_eval and ranx read it.",
        ),
    ] = None,
) -> None:
    """Measure precision, recall and mAP over labels: an image is relevant if its label is.

    Queries that are in the database themselves are left out of their own ranking, so the same
    folder may be given twice.

    Example: retr eval --queries test-embeddings --database train-embeddings
    """
    from retrieval.quality import evaluation, exchange
    from retrieval.quality.labelled import Labelled

    asked, searched = opened_sides(queries, database, workspace)
    ks = parsed_ks(k)
    other = None if against is None else exchange.read_queries(against)
    sides = protocol_sides(output, protocol, asked, searched, seed, draw, whole=index is not None)
    left, right = (
        (Labelled.of(asked), Labelled.of(searched))
        if sides is None
        else (sides.queries, sides.database)
    )
    depth = max(ks) if export_run is not None else 0
    if index is None:
        chosen = parsed_metric(metric) or searched.facts.metric
        result = evaluation.evaluate(left, right, chosen, ks, depth)
    else:
        result = _through(index, options, searched, left, right, ks, depth)
    name = None if sides is None else sides.protocol.value
    facts: dict[str, JsonValue] = {
        "queries": str(asked.folder),
        "database": str(searched.folder),
        "encoder": asked.facts.encoder.name,
        "metric": result.metric.value,
        "protocol": name,
    }
    differences = {} if other is None else exchange.compared(result, other, name)
    written = []
    if save is not None:
        exchange.write_queries(save, result, facts)
        written.append(f"measures of each query: {save}")
    if export_run is not None:
        exchange.write_run(export_run, result, right, asked.facts.encoder.name)
        written.append(f"rankings up to {depth:,}: {export_run}")
    if export_qrels is not None:
        exchange.write_qrels(export_qrels, result, right)
        written.append(f"what is relevant: {export_qrels}")
    _print(output, result, ks, name)
    if against is not None:
        _print_differences(output, differences, against)
    if written:
        output.say()
    for line in written:
        output.say(line)
    document = result.to_json() | facts
    document["counts"] = {"queries": result.queries, "database": result.database}
    if sides is not None and sides.protocol.draws:
        document["seed"] = sides.seed
    if against is not None:
        document["against"] = str(against)
        document["differences"] = {name: of.to_json() for name, of in differences.items()}
    output.document(document)


def opened_sides(
    queries: str | None, database: str | None, workspace: "Workspace"
) -> "tuple[Embeddings, Embeddings]":
    """The embeddings that ask and that are searched, of one encoder, or Mismatch."""
    from retrieval.index.folder import check_same_encoder
    from retrieval.storage.shards import open_embeddings
    from retrieval.workspace import Role

    asked = open_embeddings(
        queries or workspace.needed(Role.QUERIES, "retr encode --split test", "--queries")
    )
    searched = open_embeddings(
        database or workspace.needed(Role.DATABASE, "retr encode", "--database")
    )
    check_same_encoder(
        asked.facts.encoder, searched.facts.encoder, str(asked.folder), str(searched.folder)
    )
    return asked, searched


def protocol_sides(
    output: Output,
    protocol: str | None,
    asked: "Embeddings",
    searched: "Embeddings",
    seed: int,
    draw: Path | None,
    whole: bool,
) -> "Sides | None":
    """Who asks whom in the protocol; None without one. whole: an index has all of the database."""
    from retrieval.errors import BadInput
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.protocols import Protocol, read_draw, sides_of
    from retrieval.quality.provenance import seen

    chosen = None if protocol is None else parsed_choice("protocol", protocol, Protocol)
    if draw is not None and (chosen is None or not chosen.draws):
        raise BadInput("--draw is for a protocol that draws; add --protocol hashing-54k")
    if chosen is None:
        return None
    if whole and chosen is not Protocol.OFFICIAL:
        raise BadInput(
            f"an index has the whole database, and {chosen} searches other images; leave out "
            "--index or --protocol"
        )
    test, train = Labelled.of(asked), Labelled.of(searched)
    if draw is not None and draw.exists():
        return read_draw(draw, chosen, test, train)
    trained = known_provenance(output, searched.facts.encoder) if chosen.needs_training else None
    sides = sides_of(chosen, test, train, seen(train, searched.facts.source, trained), seed)
    if draw is not None:
        sides.write_draw(draw)
    return sides


def _through(
    index: str,
    options: list[str] | None,
    searched: "Embeddings",
    queries: "Labelled",
    database: "Labelled",
    ks: list[int],
    depth: int,
) -> "Evaluation":
    """The evaluation of what an index of the database finds."""
    from retrieval.index.folder import check_indexed, open_index
    from retrieval.quality.evaluation import evaluate_index

    opened = open_index(index, parsed_options(options))
    check_indexed(opened, searched)
    return evaluate_index(queries, database, opened.index, opened.facts.metric, ks, depth)


def print_evaluation(
    output: Output, result: "Evaluation", ks: list[int], protocol: str | None = None
) -> None:
    """Print the means, by k and overall."""
    output.say(
        f"{result.queries:,} queries against {result.database:,} images, {result.metric}"
        + (f", protocol {protocol}" if protocol else "")
    )
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
            ("  ±", *(_margin(result.margin("precision_at", k)) for k in ks)),
            ("recall@k", *(f"{result.recall_at[k]:.4f}" for k in ks)),
            ("mAP@k", *(f"{result.map_at[k]:.4f}" for k in ks)),
            ("  ±", *(_margin(result.margin("map_at", k)) for k in ks)),
            ("nDCG@k", *(f"{result.ndcg_at[k]:.4f}" for k in ks)),
        ],
    )
    output.say()
    overall = [
        (name, result.means[column], result.margin(column))
        for column, name in NAMES.items()
        if column in result.means
    ]
    if overall:
        output.say(
            "   ".join(
                f"{name} {value:.4f}" + ("" if margin is None else f" ± {margin:.4f}")
                for name, value, margin in overall
            )
        )
        output.say()


NAMES = {
    "map": "mAP",
    "r_precision": "R-precision",
    "mrr": "MRR",
    "knn_accuracy": "kNN accuracy",
}
"""Measures without a k, for people."""


def _margin(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _print(output: Output, result: "Evaluation", ks: list[int], protocol: str | None) -> None:
    from retrieval.quality.metrics import DEFINITIONS

    print_evaluation(output, result, ks, protocol)
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


def _print_differences(output: Output, differences: "dict[str, Difference]", against: Path) -> None:
    from retrieval.quality.metrics import DEFINITIONS

    output.say(f"\nagainst {against}")
    output.table(
        ("measure", "there", "here", "difference", "95% interval", "p"),
        [
            (
                name,
                f"{of.there:.4f}",
                f"{of.here:.4f}",
                f"{of.here - of.there:+.4f}",
                f"{of.interval[0]:+.4f} … {of.interval[1]:+.4f}",
                f"{of.p:.4f}",
            )
            for name, of in differences.items()
        ],
    )
    output.say()
    output.say(DEFINITIONS["p"])

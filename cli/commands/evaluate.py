"""`retr eval`: retrieval metrics over labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Database,
    Device,
    EngineOptions,
    Ks,
    MetricName,
    Queries,
    SearchOptions,
    Seed,
    parsed_ks,
    parsed_metric,
)
from cli.output import Output
from cli.sides import AskedIndex, evaluated_through, open_database, open_folders, open_sides
from cli.tables import print_evaluation

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.quality.evaluation import Evaluation
    from retrieval.quality.exchange import Difference
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.protocols import Sides
    from retrieval.quality.words.captions import CaptionRecall
    from retrieval.workspace import Workspace


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """The files that an evaluation is written to, and the one it is compared with."""

    save: Annotated[
        Path | None, typer.Option(help="Write the measures of each query to this Parquet file.")
    ] = None
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare each query with an evaluation written by --save: differences, "
            "confidence intervals and p-values."
        ),
    ] = None
    export_run: Annotated[
        Path | None,
        typer.Option(
            help="Write the rankings up to the largest k, in the run format of trec_eval and ranx."
        ),
    ] = None
    export_qrels: Annotated[
        Path | None,
        typer.Option(
            help="Write the relevant images of each query, in the qrels format of "
            "trec_eval and ranx."
        ),
    ] = None


IndexOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Evaluate this index of the database instead of exact search.",
    ),
]

ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="Protocol: official, unseen, hashing-54k or hashing-59k. It needs a test split "
        "as queries and its training split as database.  [default: all queries, the whole "
        "database]"
    ),
]

TextsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Text queries in place of images: a CSV file with the columns text,label (images with "
        "the label are relevant; also prints the zero-shot accuracy) or text,id (captions: recall "
        "of images by texts, and of texts by images).",
    ),
]

TemplatesOption = Annotated[
    bool,
    typer.Option(
        "--in-templates",
        help="With --texts: put each text into the templates of the encoder, and search with the "
        "mean vector.",
    ),
]

DrawOption = Annotated[
    Path | None,
    typer.Option(
        help="File of a hashing protocol's draw. It is read if it exists, and written if not."
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
    index: IndexOption = None,
    options: SearchOptions = None,
    protocol: ProtocolOption = None,
    seed: Seed = 0,
    draw: DrawOption = None,
    texts: TextsOption = None,
    in_templates: TemplatesOption = False,
    device: Device = "auto",
    *,
    files: EvaluationFiles,
    spread: EngineOptions,
) -> None:
    """Measure precision, recall and mAP. Images with the query's label are relevant.

    A query that is in the database is left out of its own ranking, so queries and database can be
    the same folder.

    Example: retr eval --queries test-embeddings --database train-embeddings

    Example: retr eval --texts captions.csv --database photos-embeddings
    """
    from retrieval.quality import evaluation, exchange

    through = AskedIndex.of(index, options, spread)
    if texts is not None:
        words = _Words(texts, in_templates, device)
        words.evaluate(output, workspace, queries or protocol, database, metric, k, through, files)
        return
    asked, searched = folders = open_folders(workspace, queries, database)
    ks = parsed_ks(k)
    other = None if files.against is None else exchange.read_queries(files.against)
    sides = open_sides(output, folders, protocol, seed, draw, through_index=through is not None)
    depth = 0 if files.export_run is None else max(ks)
    if through is None:
        chosen = parsed_metric(metric) or searched.facts.metric
        result = evaluation.evaluate(sides.queries, sides.database, chosen, ks, depth)
    else:
        result = evaluated_through(through, searched, sides.queries, sides.database, ks, depth)
    differences = {} if other is None else exchange.compare_evaluations(result, other, sides.name)
    facts: dict[str, JsonValue] = {
        "queries": str(asked.folder),
        "database": str(searched.folder),
        "encoder": asked.facts.encoder.name,
        "metric": result.metric.value,
        "protocol": sides.name,
    }
    written = _write(files, result, sides.database, facts)
    _print(output, result, sides.name)
    _print_differences(output, differences, files.against)
    if written:
        output.say(written)
    output.document(result.to_json() | facts | _details(result, sides, differences, files))


@dataclass(frozen=True, slots=True)
class _Words:
    """An evaluation of texts. device: for the encoder."""

    texts: Path
    in_templates: bool
    device: str

    def evaluate(
        self,
        output: Output,
        workspace: "Workspace",
        excluded: str | None,
        database: str | None,
        metric: str | None,
        k: str,
        through: AskedIndex | None,
        files: EvaluationFiles,
    ) -> None:
        """Evaluate, print and write. excluded: what goes with images only, if it was given."""
        from cli.word_evaluation import evaluate_texts, print_words
        from retrieval.errors import BadInput
        from retrieval.quality import exchange

        if excluded is not None:
            raise BadInput("--texts takes the place of --queries and --protocol; leave these out")
        other = None if files.against is None else exchange.read_queries(files.against)
        ks = parsed_ks(k)
        found = evaluate_texts(
            output,
            self.texts,
            open_database(workspace, database),
            parsed_metric(metric),
            ks,
            0 if files.export_run is None else max(ks),
            through,
            self.in_templates,
            self.device,
        )
        result, facts = found.result, found.facts
        differences = {} if other is None else exchange.compare_evaluations(result, other, None)
        written = _write(files, result, found.database, facts)
        print_words(output, found, self.texts)
        _print_differences(output, differences, files.against)
        if written:
            output.say(written)
        told = {name: of.to_json() for name, of in differences.items()}
        against: dict[str, JsonValue] = {"against": str(files.against), "differences": {**told}}
        output.document(found.to_json() | (against if other is not None else {}))


def _write(
    files: EvaluationFiles,
    result: "Evaluation | CaptionRecall",
    database: "Labelled",
    facts: "dict[str, JsonValue]",
) -> str:
    """Write the files that are asked for, and return lines that name them."""
    from retrieval.quality import exchange

    lines = []
    if files.save is not None:
        exchange.write_queries(files.save, result, facts)
        lines.append(f"\nmeasures of each query: {files.save}")
    if files.export_run is not None:
        exchange.write_run(files.export_run, result, database, str(facts["encoder"]))
        depth = result.per_query.rows.shape[1]
        lines.append(f"\nrankings up to {depth:,}: {files.export_run}")
    if files.export_qrels is not None:
        exchange.write_qrels(files.export_qrels, result, database)
        lines.append(f"\nwhat is relevant: {files.export_qrels}")
    return "".join(lines)


def _details(
    result: "Evaluation",
    sides: "Sides",
    differences: "dict[str, Difference]",
    files: EvaluationFiles,
) -> "dict[str, JsonValue]":
    details: dict[str, JsonValue] = {
        "counts": {"queries": result.queries, "database": result.database}
    }
    if sides.protocol is not None and sides.protocol.draws:
        details["seed"] = sides.seed
    if files.against is not None:
        details["against"] = str(files.against)
        details["differences"] = {name: of.to_json() for name, of in differences.items()}
    return details


def _print(output: Output, result: "Evaluation", protocol: str | None) -> None:
    from retrieval.quality.metrics import DEFINITIONS
    from retrieval.quality.summary import table_of_classes

    print_evaluation(output, result, protocol)
    output.table(*table_of_classes(result))
    output.say()
    for name in result.defined:
        output.say(DEFINITIONS[name])


def _print_differences(
    output: Output, differences: "dict[str, Difference]", against: Path | None
) -> None:
    from retrieval.quality.metrics import DEFINITIONS

    if against is None:
        return
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

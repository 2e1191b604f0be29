"""Make the report of an encoder from the embeddings of queries and of a database."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.choices import resolve_choices
from retrieval.contracts import Metric
from retrieval.drawing.galleries import gallery_of
from retrieval.drawing.layout import Layout, laid_out
from retrieval.drawing.report import Bench, Report
from retrieval.quality import summary
from retrieval.quality.curves import confusion, extremes, precision_recall
from retrieval.quality.evaluation import KS, Evaluation, evaluate
from retrieval.quality.metrics import DEFINITIONS
from retrieval.quality.protocols import Sides
from retrieval.storage.sets.embeddings import Embeddings

NEIGHBORS_SHOWN = 10  # of each query
MAX_CONFUSED_CLASSES = 50  # more are unreadable in a matrix
EXTREME_QUERIES = 6  # best queries, and as many worst ones


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Settings of a report.

    metric: None for the metric of the encoder. max_points: maximum number of points on the map.
    seed: random seed, for the choice of the points and their layout.
    """

    metric: Metric | None = None
    layout: Layout = Layout.PCA
    max_points: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        resolve_choices(self)


def evaluation_report(
    queries: Embeddings,
    database: Embeddings,
    sides: Sides,
    settings: ReportSettings,
    commands: Sequence[str],
    bench: Bench | None = None,
) -> tuple[Report, Evaluation]:
    """Return the report of an exact evaluation, and the evaluation.

    queries, database: the folders. sides: the images of the folders that are evaluated.
    commands: command lines that make the report again. bench: results of the indices; None for a
    report without them.
    """
    metric = settings.metric or database.facts.metric
    left, right = sides.queries, sides.database
    result = evaluate(left, right, metric, KS, NEIGHBORS_SHOWN)
    few = len(result.per_class) <= MAX_CONFUSED_CLASSES
    labels, shares = confusion(result, right) if few else ([], np.empty((0, 0)))
    best, worst = extremes(result, EXTREME_QUERIES)
    drawn = right.sample(settings.max_points, settings.seed)
    mappable = len(drawn) > 3 and drawn.vectors.shape[1] > 1
    encoder = database.facts.encoder
    report = Report(
        title=f"{encoder.title} on {database.facts.source.name}",
        facts={
            "encoder": f"{encoder.name} ({encoder.fingerprint[:8]})",
            "metric": str(metric),
            "queries": f"{result.queries:,} of {queries.facts.source.name}",
            "database": f"{result.database:,} of {database.facts.source.name}",
            **({} if sides.name is None else {"protocol": sides.name}),
        },
        overall=summary.overall(result),
        measures=summary.table_at_k(result),
        classes=summary.table_of_classes(result),
        labels=labels,
        confusion=shares,
        curves=precision_recall(left, right, metric),
        best=gallery_of(result, left, right, best),
        worst=gallery_of(result, left, right, worst),
        points=laid_out(drawn.vectors, settings.layout, metric, settings.seed)
        if mappable
        else None,
        point_labels=drawn.labels,
        map_title=f"{len(drawn):,} images of the database by {settings.layout.upper()}",
        definitions={name: DEFINITIONS[name] for name in result.defined},
        commands=commands,
        bench=bench,
        notes=[f"{sentence}." for sentence in summary.left_out(result)],
    )
    return report, result

"""Write a report as one HTML file, with its pictures and plots inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retrieval.contracts import Vectors
from retrieval.drawing.figures import Picture
from retrieval.drawing.pages import embedded, embedded_picture, write_page
from retrieval.drawing.plots import Labels, draw_map, draw_precision_recall
from retrieval.quality.curves import Curves, Values

PICTURE_SIDE = 96  # pixels
MAX_LABEL_LINES = 30  # more cannot be distinguished


@dataclass(frozen=True, slots=True)
class Bench:
    """Results of indices: the table of `retr bench`, and its plot as PNG."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    plot: bytes | None
    conditions: str


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Content of a report. Tables are a header and lines; galleries are queries with hits."""

    title: str
    facts: Mapping[str, str]
    measures: tuple[Sequence[str], Sequence[Sequence[str]]]
    overall: Mapping[str, str]
    classes: tuple[Sequence[str], Sequence[Sequence[str]]]
    labels: Sequence[str]
    confusion: Values
    curves: Curves
    best: Sequence[tuple[Picture, Sequence[Picture]]]
    worst: Sequence[tuple[Picture, Sequence[Picture]]]
    points: Vectors | None
    point_labels: Labels
    map_title: str
    definitions: Mapping[str, str]
    commands: Sequence[str]
    bench: Bench | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def write_report(path: Path, report: Report) -> None:
    """Write the HTML file, whole or not at all. Raises CannotWrite if it cannot be written."""
    with TemporaryDirectory() as name:
        curves, plane = Path(name) / "curves.svg", Path(name) / "map.png"
        of_labels = report.curves.by_label
        draw_precision_recall(
            curves, report.curves.overall, of_labels if len(of_labels) <= MAX_LABEL_LINES else {}
        )
        if report.points is not None:
            draw_map(plane, report.points, report.point_labels, report.map_title)
        shown: dict[str, Any] = {
            "report": report,
            "embed": lambda image: embedded_picture(image, PICTURE_SIDE),
            "columns": 1 + max((len(hits) for _, hits in (*report.best, *report.worst)), default=0),
            "curves": embedded(curves.read_bytes(), "svg+xml"),
            "plane": None if report.points is None else embedded(plane.read_bytes(), "png"),
            "pareto": None,
        }
    if report.bench is not None and report.bench.plot is not None:
        shown["pareto"] = embedded(report.bench.plot, "png")
    write_page(path, "report.html", shown)

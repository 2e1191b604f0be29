"""Write a report as one HTML file, with its pictures and plots inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from retrieval.contracts import Vectors
from retrieval.drawing.figures import Picture
from retrieval.drawing.plots import Labels, draw_map, draw_precision_recall
from retrieval.errors import CannotWrite
from retrieval.quality.curves import Curves, Values
from retrieval.storage.files import write_whole

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
    environment = Environment(
        loader=PackageLoader("retrieval.drawing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = _picture
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
            "columns": 1 + max((len(hits) for _, hits in (*report.best, *report.worst)), default=0),
            "curves": _embedded(curves.read_bytes(), "svg+xml"),
            "plane": None if report.points is None else _embedded(plane.read_bytes(), "png"),
            "pareto": None,
        }
    if report.bench is not None and report.bench.plot is not None:
        shown["pareto"] = _embedded(report.bench.plot, "png")
    text = environment.get_template("report.html").render(shown)
    try:
        write_whole(path, lambda partial: partial.write_text(text, "utf-8"))
    except OSError as error:
        raise CannotWrite(path, error) from None


def _picture(image: Image.Image) -> str:
    """Return the image as the source of an <img>: a small one as PNG, a larger one as JPEG."""
    small = max(image.size) <= PICTURE_SIDE
    shown = image.copy()
    shown.thumbnail((2 * PICTURE_SIDE, 2 * PICTURE_SIDE))
    written = io.BytesIO()
    shown.save(written, "PNG" if small else "JPEG", quality=80)
    return _embedded(written.getvalue(), "png" if small else "jpeg")


def _embedded(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

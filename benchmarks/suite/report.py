"""Files of a run of the suite: tables and plots; and the changes between two runs."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from benchmarks.suite.data import BenchData
from benchmarks.suite.grid import named
from benchmarks.suite.run import SuiteReport
from benchmarks.suite.table import Table, report_table
from retrieval.contracts import Json
from retrieval.drawing.plots import Trade, draw_trade
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.storage.files import (
    check_format,
    made_folder,
    read_json,
    write_csv,
    write_json,
    write_whole,
)
from retrieval.storage.names import storable
from retrieval.storage.tables import write_table

NAME = "bench"
BY_QUERY = "queries.parquet"
FORMAT = "retr-bench"
VERSION = 1

MIN_SPEED_FACTOR = 1.1
"""Minimum ratio of median speeds that counts as a change, if all runs of one are faster than all of
the other. Two consecutive runs of the same code differ by less."""

MIN_FACTOR_OF_SINGLE_MEASUREMENT = 1.5
"""Minimum ratio of build times, and of memory, that counts as a change."""

QUALITY_TOLERANCE = 1e-3
"""Difference of shares, and relative difference of sizes, that counts as equal: graphs that several
threads build differ."""

Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A measure before and after. better: None if the difference may be noise."""

    backend: str
    setting: str
    threads: int
    measure: str
    before: float
    after: float
    better: bool | None

    def to_json(self) -> dict[str, Json]:
        """Return an entry of `retr bench --compare --json`."""
        verdict = {None: "same", True: "better", False: "worse"}[self.better]
        return {
            "backend": self.backend,
            "setting": self.setting,
            "threads": self.threads,
            "measure": self.measure,
            "before": self.before,
            "after": self.after,
            "verdict": verdict,
        }


def document_of(report: SuiteReport, data: BenchData) -> dict[str, Json]:
    """Return the document of `bench.json` and of `retr bench --json`."""
    content = report.to_json()
    facts = {**report.data, **data.to_json()}
    return {"format": FORMAT, "version": VERSION, **content, "data": facts}


def write(folder: Path, document: Document, by_query: pa.Table) -> list[Path]:
    """Write all forms of a report into the folder, and return the files.

    The interactive plot `bench.html` needs plotly, and is left out without it.
    """
    made_folder(folder)
    paths = {kind: folder / f"{NAME}.{kind}" for kind in ("json", "csv", "md", "png", "html")}
    rows = document["rows"]
    write_json(paths["json"], dict(document))
    write_table(folder / BY_QUERY, by_query)
    write_csv(paths["csv"], [_flat(row) for row in rows])
    write_whole(
        paths["md"], lambda partial: partial.write_text(_markdown(report_table(rows)), "utf-8")
    )
    _draw(paths["png"], rows)
    if find_spec("plotly") is None:
        paths.pop("html").unlink(missing_ok=True)  # from an earlier report
    else:
        _write_html(paths["html"], document)
    return [*paths.values(), folder / BY_QUERY]


def read(path: Path) -> Document:
    """Return the document in a `bench.json`, or in a folder that has one.

    Raises BadInput if there is none, BadData if it is not from `retr bench`.
    """
    file = path / f"{NAME}.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file} not found; give a folder that 'retr bench --out' wrote")
    document: Any = read_json(file)
    check_format(document, FORMAT, VERSION, file)
    try:
        _data(document), document["machine"]["cpu"]
        for row in document["rows"]:
            _key(row), [*_changes(row, row)]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadData(f"{file}: field {error} is missing or wrong; measure again") from None
    return cast(Document, document)


def table_of(document: Document, file: Path) -> Table:
    """Return the table of a report, for people. Raises BadData if it is not one of `retr bench`."""
    try:
        return report_table(document["rows"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadData(f"{file}: field {error} is missing or wrong; measure again") from None


def compare(old: Document, new: Document) -> list[Change]:
    """Return the changes of each setting that both runs measured.

    Raises Mismatch for different data, BadInput if no setting is in both.
    """
    for (name, met), (_, given) in zip(_data(old), _data(new), strict=True):
        if met != given:
            raise Mismatch(
                f"the reports have different data: {name} {met} and {given}; measure both on "
                "the same data"
            )
    before = {_key(row): row for row in old["rows"]}
    both = [(before[_key(row)], row) for row in new["rows"] if _key(row) in before]
    if not both:
        raise BadInput("the reports have no common backend and setting; measure one again")
    return [change for was, now in both for change in _changes(was, now)]


def median_speedup(changes: Iterable[Change]) -> float:
    """Return the median ratio of batch speeds over all settings.

    For the same code, it shows how similar the machines were.
    """
    ratios = [c.after / c.before for c in changes if c.measure == BATCHES]
    return statistics.median(ratios)


def _data(document: Document) -> list[tuple[str, Any]]:
    """Return the facts about the data that affect speed and recall."""
    data = document["data"]
    return [(name, data[name]) for name in ("counts", "dim", "metric", "encoder")]


def _key(row: Row) -> tuple[str, str, int]:
    return row["backend"], named(row["setting"]), row["threads"]


BATCHES = "queries/s"


def _changes(was: Row, now: Row) -> Iterator[Change]:
    def change(measure: str, before: float, after: float, better: bool | None) -> Change:
        return Change(*_key(now), measure, float(before), float(after), better)

    def exact(measure: str, before: float, after: float, more_is_better: bool) -> Change:
        same = abs(after - before) <= QUALITY_TOLERANCE * max(abs(before), abs(after), 1)
        return change(measure, before, after, None if same else (after > before) == more_is_better)

    def once(measure: str, before: float, after: float) -> Change:
        same = max(before, after) <= MIN_FACTOR_OF_SINGLE_MEASUREMENT * min(before, after)
        return change(measure, before, after, None if same else after < before)

    yield change(BATCHES, was["qps"], now["qps"], _faster(was["qps_runs"], now["qps_runs"]))
    p50 = [row["latency_ms"]["p50"] for row in (was, now)]
    speeds = [[1 / ms for ms in row["latency_runs_ms"]] for row in (was, now)]
    yield change("p50 ms", p50[0], p50[1], _faster(*speeds))
    for k in ("1", "10", "100"):
        yield exact(f"recall@{k}", was["recall_at"][k], now["recall_at"][k], True)
    if was["map_loss"] is not None and now["map_loss"] is not None:
        yield exact("mAP lost", was["map_loss"], now["map_loss"], False)
    yield exact("file bytes", was["size_bytes"], now["size_bytes"], False)
    yield once("build s", was["build_seconds"], now["build_seconds"])
    if was["memory_bytes"] and now["memory_bytes"]:
        yield once("memory bytes", was["memory_bytes"], now["memory_bytes"])


def _faster(before: Sequence[float], after: Sequence[float]) -> bool | None:
    """Return whether speeds rose (True) or fell (False) beyond noise, or neither (None)."""
    for better, slow, fast in ((True, before, after), (False, after, before)):
        apart = min(fast) > max(slow)
        if apart and statistics.median(fast) > MIN_SPEED_FACTOR * statistics.median(slow):
            return better
    return None


def _flat(row: Row) -> dict[str, object]:
    """Return a row of the CSV with one number per column, such as `recall_at_10`."""
    flat: dict[str, object] = {"backend": row["backend"], "setting": named(row["setting"])}
    for name, value in row.items():
        if name == "map_at":  # None without labels
            flat["map_at_100"] = None if value is None else value["100"]
        elif isinstance(value, Mapping):
            if name not in ("setting", "options", "details"):
                flat |= {f"{name}_{key}": each for key, each in value.items()}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *lines = ([cell.replace("|", r"\|") for cell in line] for line in table)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))


PANELS = {"all queries in one call": "qps", "one at a time": "qps_single"}
RECALL, SPEED = "recall@10 of the index", "queries per second"
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each backend and number of threads, by recall."""
    several = len({row["threads"] for row in rows}) > 1
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["backend"], row["threads"], _recall(row))):
        threads = f", threads: {row['threads']}" if several else ""
        lines.setdefault(row["backend"] + threads, []).append(row)
    return lines


def _front(line: Sequence[Row], speed: str) -> list[Row]:
    """Return the Pareto front of the rows, by recall: no row is better in recall and in speed."""
    best, found = 0.0, []
    for row in sorted(line, key=lambda row: (_recall(row), row[speed]), reverse=True):
        if row[speed] > best:
            best = row[speed]
            found.append(row)
    return found[::-1]


def _recall(row: Row) -> float:
    return float(row["recall_at"]["10"])


@dataclass(frozen=True, slots=True)
class MissedAxis:
    """A logarithmic axis of 1 - recall, on which .9, .99 and .999 are equally far apart.

    none: place of a recall of 1. ticks: places of the ticks, by their texts.
    """

    none: float
    ticks: Mapping[str, float]

    @classmethod
    def of(cls, recalls: Sequence[float]) -> "MissedAxis":
        """Return an axis for these recalls."""
        missed = [1 - recall for recall in recalls if recall < 1] or [0.01]
        none = min(missed) / 3
        shown = (tick for tick in TICKS if 2 * none < 1 - tick <= 1.2 * max(missed))
        return cls(none, {**{f"{tick:g}": 1 - tick for tick in shown}, "1": none})

    def place(self, recall: float) -> float:
        """Return the place of a recall on the axis."""
        return max(1 - recall, self.none)


def _draw(path: Path, rows: Sequence[Row]) -> None:
    axis = MissedAxis.of([_recall(row) for row in rows])

    def points(rows: Sequence[Row], speed: str) -> list[tuple[float, float]]:
        return [(axis.place(_recall(row)), row[speed]) for row in rows]

    panels = {
        title: {
            name: Trade(
                points(line, speed),
                points(_front(line, speed), speed),
                points([row for row in line if row["pareto"] and speed == "qps"], speed),
            )
            for name, line in _lines(rows).items()
        }
        for title, speed in PANELS.items()
    }
    draw_trade(path, panels, RECALL, SPEED, axis.ticks)


def _write_html(path: Path, document: Document) -> None:
    """Write the plot as one interactive file, with all numbers of a point under the mouse."""
    from plotly.colors import qualitative  # slow to import
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    data, machine = document["data"], document["machine"]
    axis = MissedAxis.of([_recall(row) for row in document["rows"]])
    figure = make_subplots(1, len(PANELS), subplot_titles=[*PANELS])
    for column, speed in enumerate(PANELS.values(), 1):
        for number, (name, line) in enumerate(_lines(document["rows"]).items()):
            color = qualitative.D3[number % len(qualitative.D3)]
            front = _front(line, speed)
            starred = [row["pareto"] and speed == "qps" for row in line]
            lines = Scatter(
                x=[axis.place(_recall(row)) for row in front],
                y=[row[speed] for row in front],
                mode="lines",
                hoverinfo="skip",
                line={"color": color},
                legendgroup=name,
                showlegend=False,
            )
            points = Scatter(
                x=[axis.place(_recall(row)) for row in line],
                y=[row[speed] for row in line],
                text=[_hover(row) for row in line],
                hovertemplate="%{text}<extra></extra>",
                mode="markers",
                marker={
                    "color": color,
                    "size": [12 if star else 7 for star in starred],
                    "symbol": ["star" if star else "circle" for star in starred],
                },
                name=name,
                legendgroup=name,
                showlegend=column == 1,
            )
            figure.add_traces([lines, points], rows=1, cols=column)
        figure.update_xaxes(
            title_text=RECALL,
            type="log",
            autorange="reversed",
            tickvals=[*axis.ticks.values()],
            ticktext=[*axis.ticks],
            row=1,
            col=column,
        )
        figure.update_yaxes(title_text=SPEED, type="log", row=1, col=column)
    queries, database = (escape(storable(data[name])) for name in ("queries", "database"))
    figure.update_layout(
        title_text=(
            f"{queries} against {database}<br><sup>{data['dim']} "
            f"dimensions, {data['metric']}; {escape(machine['cpu'])}; a star: on the Pareto front"
            "</sup>"
        ),
        template="plotly_white",
    )
    write_whole(path, lambda partial: figure.write_html(partial, include_plotlyjs=True))


def _hover(row: Row) -> str:
    lines = [
        f"<b>{row['backend']}</b> {named(row['setting'])}",
        f"recall@1 {row['recall_at']['1']:.4f}, @10 {row['recall_at']['10']:.4f}, "
        f"@100 {row['recall_at']['100']:.4f}",
        f"{row['qps']:,.0f} queries/s in batches, {row['qps_single']:,.0f} one at a time",
        "ms: " + ", ".join(f"{name} {value:.3f}" for name, value in row["latency_ms"].items()),
        f"build {row['build_seconds']:.3g} s, file {row['size_bytes'] / 1e6:.3g} MB"
        + ("" if row["memory_bytes"] is None else f", memory {row['memory_bytes'] / 1e6:.3g} MB"),
    ]
    if row["map_loss"] is not None:
        lines.append(f"mAP@100 {row['map_at']['100']:.4f}, lost {row['map_loss']:+.4f}")
    return "<br>".join(lines)

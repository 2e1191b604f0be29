"""What is left of a run of the suite: tables, plots, and what changed since another.

All of it comes from the JSON document of `retr bench`, so that an old one can be drawn again.
"""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.contracts import Json
from retrieval.drawing.plots import Point, draw_trade
from retrieval.errors import BadData, BadInput
from retrieval.storage.files import made_folder, read_json, write_json, write_whole

NAME = "bench"
BY_QUERY = "queries.parquet"
NOISE = 1.1
"""By what factor speeds must differ at least to count as changed, besides that no run of the one
is as fast as any of the other: two runs of the same code, one after another, differ by as much."""

ALIKE = 1e-3
"""Shares that differ by no more count as alike, and sizes by this part of them: graphs that several
threads build differ from time to time."""

Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """What a measure was and is. better: None where the difference may be noise."""

    backend: str
    setting: str
    threads: int
    measure: str
    before: float
    after: float
    better: bool | None

    def to_json(self) -> dict[str, Json]:
        """As in `retr bench --compare --json`."""
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


def named(setting: Mapping[str, object]) -> str:
    """A setting for people: `n_lists=30 n_probe=1`."""
    return " ".join(f"{name}={value}" for name, value in setting.items())


def write(
    folder: Path, document: Document, by_query: pa.Table, table: Sequence[Sequence[str]]
) -> list[Path]:
    """Write all forms of a report into the folder, and return the files.

    table: a header and a line for each row, for people. The interactive plot needs plotly: where
    there is none, there is no `bench.html`.
    """
    made_folder(folder)
    paths = {kind: folder / f"{NAME}.{kind}" for kind in ("json", "csv", "md", "png", "html")}
    rows = document["rows"]
    write_json(paths["json"], dict(document))
    write_whole(folder / BY_QUERY, lambda partial: pq.write_table(by_query, partial))
    _write_csv(paths["csv"], [_flat(row) for row in rows])
    write_whole(paths["md"], lambda partial: partial.write_text(_markdown(table), "utf-8"))
    _draw(paths["png"], rows)
    try:
        _write_html(paths["html"], document)
    except ImportError:
        del paths["html"]
    return [*paths.values(), folder / BY_QUERY]


def read(path: Path) -> Document:
    """The document in a `bench.json`, or in a folder that has one.

    Raises BadInput where there is none, BadData where it is not one of `retr bench`.
    """
    file = path / f"{NAME}.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file} is not there; give a folder that 'retr bench --out' wrote")
    document: Any = read_json(file)
    try:
        for row in document["rows"]:
            _key(row), row["recall_at"]["10"], row["qps_runs"][0], row["latency_runs_ms"][0]
            row["size_bytes"], row["memory_bytes"], row["map_loss"]
        document["machine"]["cpu"]
    except (KeyError, IndexError, TypeError) as error:
        raise BadData(f"{file} is no report of 'retr bench', or an old one ({error!r})") from None
    return cast(Document, document)


def compare(old: Document, new: Document) -> list[Change]:
    """What changed in each setting that both measured. Raises BadInput where there is none."""
    before = {_key(row): row for row in old["rows"]}
    both = [(before[_key(row)], row) for row in new["rows"] if _key(row) in before]
    if not both:
        raise BadInput("the two reports have no backend with the same setting; measure one again")
    return [change for was, now in both for change in _changes(was, now)]


def together(changes: Iterable[Change]) -> float:
    """By what factor batches are faster in the median of all settings: how alike the machines
    were, where the code is the same."""
    ratios = [c.after / c.before for c in changes if c.measure == "queries/s" and c.before]
    return statistics.median(ratios) if ratios else 1.0


def _key(row: Row) -> tuple[str, str, int]:
    return row["backend"], named(row["setting"]), row["threads"]


def _changes(was: Row, now: Row) -> list[Change]:
    def change(measure: str, before: float, after: float, better: bool | None) -> Change:
        return Change(*_key(now), measure, before, after, better)

    def exact(measure: str, before: float, after: float, more_is_better: bool) -> Change:
        same = abs(after - before) <= ALIKE * max(abs(before), abs(after), 1)
        better = None if same else (after > before) == more_is_better
        return change(measure, before, after, better)

    found = [
        change("queries/s", was["qps"], now["qps"], _faster(was["qps_runs"], now["qps_runs"])),
        change(
            "p50 ms",
            was["latency_ms"]["p50"],
            now["latency_ms"]["p50"],
            _faster(*([1 / ms for ms in row["latency_runs_ms"]] for row in (was, now))),
        ),
        exact("recall@10", was["recall_at"]["10"], now["recall_at"]["10"], True),
        exact("file bytes", was["size_bytes"], now["size_bytes"], False),
    ]
    if was["map_loss"] is not None and now["map_loss"] is not None:
        found.append(exact("mAP lost", was["map_loss"], now["map_loss"], False))
    return found


def _faster(before: Sequence[float], after: Sequence[float]) -> bool | None:
    """Whether the speeds rose beyond noise; None where they may not have changed."""
    for better, slow, fast in ((True, before, after), (False, after, before)):
        apart = min(fast) > max(slow)
        if apart and statistics.median(fast) > NOISE * statistics.median(slow):
            return better
    return None


def _flat(row: Row) -> dict[str, object]:
    """A row of the CSV: one number a column, `recall_at_10` or `latency_ms_p50`."""
    flat: dict[str, object] = {"backend": row["backend"], "setting": named(row["setting"])}
    for name, value in row.items():
        if isinstance(value, Mapping):
            if name not in ("setting", "options", "details"):
                flat |= {f"{name}_{key}": each for key, each in value.items()}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    def write_file(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, [*dict.fromkeys(key for row in rows for key in row)])
            table.writeheader()
            table.writerows(rows)

    write_whole(path, write_file)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *lines = ([cell.replace("|", r"\|") for cell in line] for line in table)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))


PANELS = {"all queries in one call": "qps", "one at a time": "qps_single"}
RECALL, SPEED = "recall@10 of the index", "queries per second"


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each backend and number of threads, by recall."""
    several = len({row["threads"] for row in rows}) > 1
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["recall_at"]["10"], -row["qps"])):
        threads = f", {row['threads']} threads" if several else ""
        lines.setdefault(row["backend"] + threads, []).append(row)
    return dict(sorted(lines.items()))


def _draw(path: Path, rows: Sequence[Row]) -> None:
    panels = {
        title: {
            name: [
                Point(row["recall_at"]["10"], row[speed], row["pareto"] and speed == "qps")
                for row in line
            ]
            for name, line in _lines(rows).items()
        }
        for title, speed in PANELS.items()
    }
    draw_trade(path, panels, RECALL, SPEED)


def _write_html(path: Path, document: Document) -> None:
    """The same plot with all numbers of a point under the mouse; one file, without network."""
    from plotly.colors import qualitative  # slow to import
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    data, machine = document["data"], document["machine"]
    figure = make_subplots(1, len(PANELS), subplot_titles=[*PANELS])
    for column, speed in enumerate(PANELS.values(), 1):
        for number, (name, line) in enumerate(_lines(document["rows"]).items()):
            marked = [row["pareto"] and speed == "qps" for row in line]
            figure.add_trace(
                Scatter(
                    x=[row["recall_at"]["10"] for row in line],
                    y=[row[speed] for row in line],
                    text=[_hover(row) for row in line],
                    hovertemplate="%{text}<extra></extra>",
                    mode="lines+markers",
                    marker={
                        "size": [12 if mark else 7 for mark in marked],
                        "symbol": ["star" if mark else "circle" for mark in marked],
                    },
                    line={"color": qualitative.D3[number % len(qualitative.D3)]},
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                ),
                1,
                column,
            )
        figure.update_xaxes(title_text=RECALL, row=1, col=column)
        figure.update_yaxes(title_text=SPEED, type="log", row=1, col=column)
    figure.update_layout(
        title_text=(
            f"{data['queries']} against {data['database']}<br><sup>{data['dim']} dimensions, "
            f"{data['metric']}; {machine['cpu']}; a star: on the Pareto front</sup>"
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

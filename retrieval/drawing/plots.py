"""Draw plots of measurements, as PNG or SVG by the extension of the file."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Vectors
from retrieval.errors import BadInput, CannotWrite
from retrieval.labels import as_labels
from retrieval.pairs.calibration import Alike, Calibration
from retrieval.quality.ranking import Distances
from retrieval.storage.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labels = Sequence[Any] | NDArray[Any]
"""Labels of any kind; see `retrieval.labels`."""

DPI = 120
ALIKE, OTHER = "tab:blue", "tab:orange"


def draw_roc(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw the ROC of each group of pairs: points of false and true positive rates."""
    figure = _figure(path, 5, 5)
    axes = figure.subplots()
    for name, points in curves.items():
        x = np.array([point["false_positives"] for point in points])
        y = np.array([point["true_positives"] for point in points])
        axes.plot(x, y, label=f"{name}, AUC {np.trapezoid(y, x):.4f}")
    axes.plot((0, 1), (1, 0), color="0.7", linewidth=0.8)  # the line of equal errors
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title="classes")
    _save(figure, path)


def draw_matrix(path: Path, names: Sequence[str], matrix: Distances) -> None:
    """Draw a matrix (classes, classes) of the accuracy over pairs of each two classes."""
    size = max(4.0, 1.6 + 0.6 * len(names))
    figure = _figure(path, size + 0.8, size)
    axes = figure.subplots()
    lowest = float(np.nanmin(matrix))
    image = axes.imshow(matrix, cmap="viridis", vmin=lowest, vmax=1)
    places = range(len(names))
    shown = [_plain(name) for name in names]
    axes.set_xticks(places, shown, rotation=45, ha="right")
    axes.set_yticks(places, shown)
    for row, column in np.argwhere(~np.isnan(matrix)).tolist():
        value = float(matrix[row, column])
        dark = value < (lowest + 1) / 2
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
            color="white" if dark else "black",
        )  # fmt: skip
    figure.colorbar(image, ax=axes, label="accuracy", shrink=0.8)
    _save(figure, path)


def draw_distances(
    path: Path, distances: Distances, alike: Alike, calibration: Calibration, measured: str
) -> None:
    """Draw the distances of alike and of other pairs, the threshold, and the probability.

    measured: name of the distances, for people.
    """
    figure = _figure(path, 7, 4)
    axes = figure.subplots()
    edges = np.linspace(distances.min(), distances.max(), 60).tolist()
    for kind, color, name in ((alike, ALIKE, "same class"), (~alike, OTHER, "other classes")):
        axes.hist(distances[kind], edges, color=color, alpha=0.6, label=name)
    axes.axvline(calibration.threshold, color="black", linewidth=1, label="threshold")
    axes.set(xlabel=measured, ylabel="pairs")
    probability = axes.twinx()
    at = np.linspace(distances.min(), distances.max(), 300)
    probability.plot(at, calibration.curve.probability(at), color="0.3", linestyle="--")
    probability.set(ylabel="probability of the same class (dashed)", ylim=(0, 1))
    axes.legend(loc="upper center")
    _save(figure, path)


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a training log: the loss above, retrieval metrics below. rows: one for each epoch."""
    epochs = [row["epoch"] for row in rows]
    figure = _figure(path, 7, 6)
    loss, metrics = figure.subplots(2, 1, sharex=True)
    loss.plot(epochs, [row["loss"] for row in rows], marker=".", color="black")
    loss.set_ylabel("loss")
    named = {"map": "mAP", "precision_at_10": "precision@10", "knn_accuracy": "kNN accuracy"}
    for key, name in named.items():
        metrics.plot(epochs, [row[key] for row in rows], marker=".", label=name)
    metrics.set_ylabel(f"on {rows[-1]['scored_on']}")
    metrics.set_xlabel("epoch")
    metrics.xaxis.get_major_locator().set_params(integer=True)
    metrics.legend(loc="lower right")
    for axes in (loss, metrics):
        axes.grid(alpha=0.3)
    _save(figure, path)


def draw_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[str, float]]]],
    x: str,
    y: str,
) -> None:
    """Draw panels of lines side by side. All lines have the same points on the x axis.

    panels: for each panel's title, its lines (points x and y) by name. x, y: labels of the axes.
    """
    figure = _figure(path, 3.2 * len(panels) + 1.5, 3.6)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(title=title, xlabel=x)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(y)
    if any(lines for lines in panels.values() if [*lines] != [""]):
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", frameon=False)
    _save(figure, path)


def draw_precision_recall(
    path: Path, overall: NDArray[Any], by_label: Mapping[str, NDArray[Any]]
) -> None:
    """Draw curves of precision over recall. Curves have recalls at even steps from 0 to 1."""
    figure = _figure(path, 8, 4.5)
    axes = figure.subplots()
    recalls = np.linspace(0, 1, len(overall))
    names = [*by_label]
    for shown, rows, color in _by_label(names):
        axes.plot(recalls, by_label[names[rows[0]]], color=color, linewidth=1, label=shown)
    axes.plot(recalls, overall, color="black", linewidth=2.5, label="all queries")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    _save(figure, path)


def draw_growth(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    x: str,
    shares: Collection[str],
) -> None:
    """Draw panels of lines in rows of three, for quantities that grow with x.

    panels: for each panel's title, its lines (points x and y) by name. x: label of the x axis.
    shares: titles of panels whose y axis is linear and ends at 1. All other axes are logarithmic.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(path, 3.4 * columns + 1.5, 3.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    colors: dict[str, str] = {}
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name, points in lines.items():
            color = colors.setdefault(name, f"C{len(colors)}")
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
        axes.set(title=title, xscale="log", yscale="linear" if title in shares else "log")
        axes.grid(alpha=0.3)
        if title in shares:
            axes.set_ylim(top=1.01)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(x)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    _save(figure, path)


@dataclass(frozen=True, slots=True)
class Trade:
    """Points (x, y) of settings.

    points: all settings, drawn as dots. front: points of the line. marked: points with a star.
    """

    points: Sequence[tuple[float, float]]
    front: Sequence[tuple[float, float]]
    marked: Sequence[tuple[float, float]]


def draw_trade(
    path: Path,
    panels: Mapping[str, Mapping[str, Trade]],
    x: str,
    y: str,
    ticks: Mapping[str, float],
) -> None:
    """Draw panels of trade-offs side by side, with a color for each name.

    panels: for each panel's title, its trade-offs by name. x, y: labels of the axes.
    ticks: positions of ticks on the x axis, by their texts.

    Both axes are logarithmic, and x decreases from left to right.
    """
    figure = _figure(path, 4.2 * len(panels) + 1.5, 4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, trades) in zip(grid, panels.items(), strict=True):
        for name, trade in trades.items():
            (line,) = axes.plot(*zip(*trade.front, strict=True), label=name)
            for points, marker, size in ((trade.points, "o", 16), (trade.marked, "*", 90)):
                if points:
                    axes.scatter(
                        *zip(*points, strict=True), s=size, marker=marker,
                        color=line.get_color(), zorder=3,
                    )  # fmt: skip
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
        axes.set_xticks([*ticks.values()], [*ticks], fontsize="small")
        axes.set_xticks([], minor=True)
        axes.invert_xaxis()
        axes.grid(alpha=0.3, which="both")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    _save(figure, path)


def draw_map(path: Path, points: Vectors, labels: Labels, title: str) -> None:
    """Draw points (n, 2), colored by label."""
    figure = _figure(path, 8, 7)
    axes = figure.subplots()
    for name, rows, color in _by_label(labels):
        axes.scatter(
            points[rows, 0], points[rows, 1], s=_size(len(points)), color=color, label=name,
            linewidths=0, alpha=0.7, rasterized=True,
        )  # fmt: skip
    axes.set(title=_plain(title), xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")
    _legend(figure, axes)
    _save(figure, path)


def draw_scatter_matrix(path: Path, vectors: Vectors, labels: Labels, title: str) -> None:
    """Draw each two dimensions of vectors (n, dims), and the distribution of each."""
    dims = vectors.shape[1]
    figure = _figure(path, max(4.0, 1.5 * dims + 1.5), max(4.0, 1.5 * dims))
    grid = figure.subplots(dims, dims, squeeze=False, sharex="col")
    kinds = [*_by_label(labels)]
    for row in range(dims):
        for column in range(dims):
            axes = grid[row, column]
            for name, rows, color in kinds:
                if row == column:
                    axes.hist(vectors[rows, row], 30, histtype="step", color=color, label=name)
                else:
                    axes.scatter(
                        vectors[rows, column], vectors[rows, row], s=_size(len(vectors)) / 3,
                        color=color, linewidths=0, alpha=0.6, rasterized=True,
                    )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(f"{row + 1}")
            if row == dims - 1:
                axes.set_xlabel(f"{column + 1}")
    figure.suptitle(_plain(title))
    _legend(figure, grid[0, 0])
    _save(figure, path)


def _by_label(
    labels: Labels,
) -> Iterator[tuple[str, NDArray[np.int64], tuple[float, float, float, float]]]:
    """Yield each label, its rows and its color; rows without a label first, in gray."""
    from matplotlib import colormaps

    texts = as_labels(labels)
    array = np.array(texts, dtype=object)
    unknown = np.flatnonzero([label is None for label in texts])
    if len(unknown):
        yield "no label", unknown, (0.7, 0.7, 0.7, 1.0)
    names = sorted({label for label in texts if label is not None})
    for i, name in enumerate(names):
        few = colormaps["tab10" if len(names) <= 10 else "tab20"]
        color = few(i) if len(names) <= 20 else colormaps["gist_rainbow"](i / len(names))
        yield _plain(name), np.flatnonzero(array == name), color


def _plain(name: str) -> str:
    """Return the name escaped for matplotlib.

    To matplotlib, $ starts a formula, and a label that starts with _ is left out of legends.
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Draw a legend of the colors, unless there are too many to distinguish."""
    from matplotlib.collections import PathCollection

    handles, names = axes.get_legend_handles_labels()
    if 0 < len(names) <= 30:
        legend = figure.legend(handles, names, loc="outside right upper", frameon=False)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([30])


def _size(points: int) -> float:
    """Return the area of a dot in square points. More dots have smaller areas."""
    return float(np.clip(20_000 / max(points, 1), 1, 20))


def check_picture(path: Path) -> None:
    """Raise BadInput unless the file's extension is .png or .svg."""
    if _kind(path) not in ("png", "svg"):
        raise BadInput(f"cannot draw {path}; name a file that ends in .png or .svg")


def _figure(path: Path, width: float, height: float) -> "Figure":
    """Return a new figure, with sizes in inches. Raises the error of `check_picture`."""
    check_picture(path)
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    """Write the figure, whole or not at all. Raises CannotWrite if it cannot be written."""
    try:
        write_whole(path, lambda partial: figure.savefig(partial, dpi=DPI, format=_kind(path)))
    except OSError as error:
        raise CannotWrite(path, error) from None


def _kind(path: Path) -> str:
    return path.suffix[1:].lower()

"""The choice of the codes of an index, by a sample of its vectors."""

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from indexers.graph.coding import (
    BITS,
    DISTANCE_OF_METRIC,
    LARGEST_MIDDLE,
    QUERY_ROWS,
    REACH_QUANTILE,
    Coding,
    Neighborhoods,
    parts,
    reaches,
    step_for,
    width_of,
)
from indexers.graph.distances import INNER_PRODUCT
from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.hits import squared_lengths

WIDTHS = {8: (32, 64, 128, 192, 256), 16: (16, 32, 64, 96, 128)}
"""Numbers of a code to try: of 8 bits and of 16 bits, they take the same memory."""

ENOUGH_KEPT = 0.92
"""Minimum mean share of a row's nearest that are near by code; see `Neighborhoods.kept`. In
Fashion-MNIST (784 numbers), codes of 128 bytes keep .935, and 64 or 192 bytes make slower searches.
In embeddings of CIFAR-10 (128 numbers), 64 bytes keep .982."""

COMPARED_ROWS = 10_000  # rows of the sample that steps are chosen by
OUTLYING = 10.0
"""Rows that are farther from the median than this factor on the quantile have no say in the center
and the axes: one very long row could decide them alone."""

MEDIAN_ROWS = 2_000
DEFAULT_CORRELATION = 0.5  # with too few rows to measure it
DEFAULT_MARGIN = 2.0


def fitted(
    sample: Vectors,
    neighborhoods: Neighborhoods,
    metric: Metric | str,
    axes: int | None = None,
    bits: int | None = None,
) -> Coding:
    """Return a coding for vectors like those of a sample.

    sample: (n, dim), prepared for the metric, in random order.
    axes: numbers of a code, rounded up to a multiple of a register; bits: 8 or 16 of each. None for
    the shortest codes that keep neighbors near (`ENOUGH_KEPT`); 16 bits where they keep more.
    """
    space = _Space.of(sample, choice(Metric, metric))
    if axes is not None:
        tiers = [[(axes, some) for some in BITS if bits in (None, some)]]
    else:
        sizes = [
            (width * some, width, some)
            for some in BITS
            for width in WIDTHS[some]
            if bits in (None, some)
        ]
        by_size = groupby(sorted(sizes), lambda size: size[0])
        tiers = [[(width, some) for _, width, some in tier] for _, tier in by_size]
    if len(sample) <= QUERY_ROWS:  # too few rows to decide, and more may be added: the longest
        dim = sample.shape[1]
        longest = max(tiers[-1], key=lambda size: (min(size[0], dim) * size[1], size[0]))
        return space.coding(*longest)
    best, most = None, -1.0
    for tier in tiers:
        for width, some in tier:
            coding = neighborhoods.measured(space.coding(width, some))
            kept = neighborhoods.kept(coding)
            if kept > most:
                best, most = coding, kept
        if most >= ENOUGH_KEPT:
            break
    assert best is not None
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Space:
    """A sample of vectors, and their principal axes.

    center: (dim,). directions: (dim, dim), the axes in columns, those with most variance first.
    """

    sample: Vectors
    kind: int
    center: NDArray[np.float32]
    directions: NDArray[np.float64]

    @classmethod
    def of(cls, sample: Vectors, metric: Metric) -> "_Space":
        kind = DISTANCE_OF_METRIC[metric]
        typical = _without_outliers(sample)
        center = np.zeros(sample.shape[1], np.float32)
        if kind != INNER_PRODUCT:
            center = typical.mean(axis=0, dtype=np.float64).astype(np.float32)
        reach = np.float32(max(np.abs(some - center).max() for some in parts(typical)) or 1)
        spread = np.zeros((len(center), len(center)))
        for some in parts(typical):
            centered = (some - center) / reach  # squares may overflow float32
            spread += centered.T @ centered
        return cls(sample, kind, center, np.linalg.eigh(spread)[1][:, ::-1])

    def coding(self, width: int, bits: int) -> Coding:
        """Return the coding of this width, or one with all axes if these are fewer."""
        dim = self.sample.shape[1]
        width = min(width_of(width, bits), width_of(dim, bits))
        rest = width < dim and bits == 8 and self.kind != INNER_PRODUCT
        axes = min(width - rest, dim)
        matrix = np.zeros((width, dim), np.float32)
        rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((axes, axes)))[0]
        matrix[:axes] = rotation @ self.directions[:, :axes].T
        coding = Coding.along(self.kind, matrix, self.center, bits)
        some = self.sample[:COMPARED_ROWS]
        turned = coding.turned(some)
        coding = replace(coding, step=step_for(reaches(turned, bits), bits))
        if not rest:
            return coding
        middle = float(np.median(coding.rests(some, turned))) / coding.step
        if middle > LARGEST_MIDDLE:
            return coding
        return replace(
            coding,
            has_rest=True,
            middle=middle,
            correlation=DEFAULT_CORRELATION,
            margin=DEFAULT_MARGIN,
        )


def _without_outliers(sample: Vectors) -> Vectors:
    """Return the rows of a sample (n, dim) in random order, without the few that are far out."""
    median = np.median(sample[:MEDIAN_ROWS], axis=0)
    differences = (some - median for some in parts(sample))
    squares = np.concatenate([squared_lengths(some) for some in differences])
    far = np.quantile(squares, REACH_QUANTILE, method="lower")
    typical = squares <= OUTLYING**2 * far
    return sample if typical.all() else sample[typical]

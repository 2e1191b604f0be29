"""Items to evaluate, on a line or in clusters, and an index with given hits."""

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from retrieval.contracts import Hits, Json, Mask, Metric, Vectors
from retrieval.quality.evaluation import Evaluation, evaluate
from retrieval.quality.labelled import Labelled


def f32(*rows: list[float]) -> Vectors:
    return np.array(rows, dtype=np.float32)


def on_a_line(
    places: list[float], labels: str, ids: list[str] | None = None, prefix: str = "d"
) -> Labelled:
    """Return items at places on a line. Their labels are letters, `?` for unknown."""
    return Labelled(
        np.array(places, dtype=np.float32)[:, None],
        ids or [f"{prefix}{i}" for i in range(len(places))],
        [None if letter == "?" else letter for letter in labels],
    )


def line_eval(queries: Labelled, database: Labelled, ks: tuple[int, ...] = (1, 2, 3)) -> Evaluation:
    return evaluate(queries, database, Metric.EUCLIDEAN, ks)


def table(result: Evaluation) -> tuple[list[str], list[str], list[list[float]]]:
    """Every measure of every query."""
    of = result.per_query
    return of.ids, of.columns, of.values.tolist()


@dataclass(frozen=True)
class Canned:
    """An index that finds what it is told."""

    rows: list[list[int]]
    size: int
    dim: int = 1
    details: MappingProxyType[str, Json] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return self.size

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        for i, found in enumerate(self.rows):
            rows[i, : len(found[:k])] = found[:k]
        return Hits(rows, np.zeros(rows.shape, dtype=np.float32))

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def clusters(n: int, prefix: str, seed: int, offset: float = 0.0) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    vectors = np.eye(4, 12)[labels] * 2 + rng.standard_normal((n, 12)) + offset
    return Labelled(
        vectors.astype(np.float32), [f"{prefix}{i}" for i in range(n)], labels.astype(str)
    )

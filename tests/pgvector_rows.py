"""Rows for tables of PostgreSQL, with odd values."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.contracts import Vectors

DIM = 6
ODD = [
    "cat",
    'say "cat"',
    "it's",
    "back\\slash\\",
    "two\nlines",
    "ünï 猫 🐈",
    "%s %(x)s %",
    "",
    "a,b",
]
ATTACK = "'; DROP TABLE victim; --"


def vectors(rows: int, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


@dataclass(frozen=True)
class TableItems:
    """Items of a table with columns."""

    table: pa.Table
    columns: pa.Table | None
    data: Vectors
    encoder: str = "a" * 64
    source: tuple[str, ...] = ("b" * 64,)
    unfinished: Path = Path("unused")

    @property
    def rows(self) -> int:
        return len(self.data)

    @property
    def dim(self) -> int:
        return self.data.shape[1]

    def __iter__(self) -> Iterator[Vectors]:
        yield self.data


def items(
    rows: int, columns: pa.Table | None = None, labels: list[Any] | None = None
) -> TableItems:
    texts = pa.table(
        {
            "id": pa.array([f"id{i}" for i in range(rows)], pa.string()),
            "label": pa.array(labels or [None] * rows, pa.string()),
            "path": pa.array([None] * rows, pa.string()),
        }
    )
    return TableItems(texts, columns, vectors(rows))

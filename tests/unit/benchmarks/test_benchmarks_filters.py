"""The study of filters."""

from typing import Any

import numpy as np
import pytest

from benchmarks.studies import filters
from retrieval.contracts import Metric


def test_each_share_has_a_time_beside_that_without_a_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters, "ROUNDS", 1)
    vectors = np.random.default_rng(0).standard_normal((3000, 8), dtype=np.float32)
    found: Any = filters.measure(vectors[:5], vectors, Metric.COSINE, ["hnsw"], {"ef": "200"})
    rows = found["hnsw"]
    assert [row["share"] for row in rows] == [1, *filters.SHARES]
    plain = rows[0]["milliseconds"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / plain)
    assert all(row["recall"] > 0.9 and row["milliseconds"] > 0 for row in rows)

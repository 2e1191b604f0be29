"""Folders of every format version that was ever released, opened by the code of today."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.contracts import Framing, Metric
from retrieval.indexing import open_index
from retrieval.inspection import verify
from retrieval.registry import open_encoder
from retrieval.storage.shards import Dtype, open_embeddings

V1 = Path(__file__).parents[1] / "golden" / "v1"
EXPECTED = np.array(
    [
        [0, 0, 0, 1],
        [1, 0.5, -0.25, 1],
        [2, 1, -0.5, 1],
        [3, 1.5, -0.75, 1],
        [4, 2, -1, 1],
        [5, 2.5, -1.25, 1],
    ],
    np.float32,
)


def test_embeddings() -> None:
    embeddings = open_embeddings(V1 / "embeddings")
    rows, vectors = embeddings.read()
    assert vectors.dtype == np.float32
    assert vectors.tolist() == EXPECTED.tolist()
    assert rows.to_pydict() == {
        "id": [f"train/{i:05d}" for i in range(6)],
        "label": ["even", None, "even", None, "even", None],
        "path": [f"images/{i}.png" for i in range(6)],
    }
    facts = embeddings.facts
    assert (facts.encoder.name, facts.encoder.fingerprint) == ("golden", "0" * 64)
    assert (facts.dim, facts.dtype, facts.metric) == (4, Dtype.FLOAT16, Metric.EUCLIDEAN)
    assert (facts.source.name, facts.source.images) == ("golden/train", 7)
    assert [shard.rows for shard in embeddings.manifest.shards] == [4, 2]
    assert embeddings.manifest.skipped == 1
    assert verify(V1 / "embeddings").problems == ()


@pytest.mark.parametrize("backend", ["exact", "ivf", "hnsw"])
def test_indices(backend: str) -> None:
    opened = open_index(V1 / backend)
    hits = opened.index.search(EXPECTED[4:5], 3)
    assert hits.rows.tolist()[0] == [4, 3, 5]
    step = np.sqrt(1 + 0.25 + 0.0625)
    np.testing.assert_allclose(hits.distances[0], [0, step, step], rtol=1e-6)
    assert opened.rows["path"].to_pylist()[4] == "images/4.png"
    assert verify(V1 / backend).problems == ()


def test_encoder() -> None:
    encoder = open_encoder(str(V1 / "encoder"))
    assert (encoder.dim, encoder.metric, encoder.framing) == (5, Metric.COSINE, Framing(side=32))
    # Of another value, embeddings that were made before would be refused: raise a version then.
    assert encoder.fingerprint.startswith("4ca912ab3ab7a1d0")
    lying = (np.arange(32 * 32 * 3) * 37 % 100).reshape(32, 32, 3).astype(np.uint8)
    lying[::4] += 150
    standing = np.ascontiguousarray(lying.transpose(1, 0, 2))
    expected = [[0.119, -0.427, -0.062, 0.894, 0.003], [0.299, -0.298, -0.147, 0.887, 0.113]]
    np.testing.assert_allclose(encoder.encode(np.stack((lying, standing))), expected, atol=0.02)
    assert verify(V1 / "encoder").problems == ()

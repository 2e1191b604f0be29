"""A service over 30 photos by the toy encoder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.contracts import Metric
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.serving.app import make_app
from retrieval.serving.collection import Collection
from tests.uploads import HERE


@pytest.fixture
def collection(photos: Path, tmp_path: Path) -> Collection:
    """30 photos by the toy encoder, in two indices."""
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "embeddings")
    sets = [open_embeddings(tmp_path / "embeddings")]
    build_index(sets, "exact", tmp_path / "exact")
    build_index(sets, "ivf", tmp_path / "ivf", Metric.COSINE, {"n_lists": 4, "n_probe": 4})
    return Collection([tmp_path / "exact", tmp_path / "ivf"], [tmp_path / "embeddings"])


@pytest.fixture
def client(collection: Collection) -> Iterator[TestClient]:
    with TestClient(make_app(collection), base_url=HERE, raise_server_exceptions=False) as made:
        yield made

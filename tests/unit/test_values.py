"""Values of wrong types at the public Python functions: each is refused in plain words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import (
    Labelled,
    Searcher,
    build_index,
    evaluate,
    open_embeddings,
    open_encoder,
    open_index,
)
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.registry import indexer_plugin
from retrieval.values import whole_number
from tests.made import embeddings

VECTORS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
BACKENDS = ("exact", "ivf", "ivfpq", "hnsw", "hnsw-pca", "vamana", "faiss", "milvus", "pgvector")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with embeddings, `e`, and an index of them, `i`."""
    there = tmp_path_factory.mktemp("values")
    build_index([embeddings(there / "e", VECTORS)], "exact", there / "i")
    return there


def test_whole_numbers_are_those_of_python_and_numpy() -> None:
    for three in (3, np.int64(3), np.uint8(3), np.array(3)):
        assert whole_number(three, "k") == 3 and type(whole_number(three, "k")) is int
    for wrong in ("3", 2.5, 3.0, True, None, [3], np.array([1, 2])):
        with pytest.raises(BadInput, match=r"k is .*; give a whole number"):
            whole_number(wrong, "k")


@pytest.mark.parametrize("k", ["3", 2.5, True, [3]])
def test_k_must_be_a_whole_number(folder: Path, k: Any) -> None:
    searcher = Searcher.open(folder / "i")
    searches: list[Callable[[], object]] = [
        lambda: searcher.search(VECTORS, k),
        lambda: searcher.search_images([], k),
        lambda: searcher.opened.index.search(VECTORS, k),
        lambda: evaluate(open_embeddings(folder / "e"), open_embeddings(folder / "e"), ks=[k]),
    ]
    for search in searches:
        with pytest.raises(BadInput, match=r"k is .*; give a whole number"):
            search()
    assert len(searcher.search(VECTORS, np.int64(3))[0]) == 3


def test_other_values_of_wrong_types_are_named(folder: Path) -> None:
    made, searcher = open_embeddings(folder / "e"), Searcher.open(folder / "i")
    index, any_ = searcher.opened.index, folder / "new"
    wrong: dict[str, Callable[[], object]] = {
        "the encoder is 3;": lambda: open_encoder(3),  # type: ignore[arg-type]
        "the folder is 3;": lambda: open_index(3),  # type: ignore[arg-type]
        "the folder is None;": lambda: open_embeddings(None),  # type: ignore[arg-type]
        "the index is 3;": lambda: Searcher(3),  # type: ignore[arg-type]
        "the encoder is 'siamese';": lambda: Searcher.open(folder / "i", encoder="siamese"),  # type: ignore[arg-type]
        "the filter is 5;": lambda: searcher.search(VECTORS, 3, 5),  # type: ignore[arg-type]
        r"the mask is \[True": lambda: index.search(VECTORS, 3, [True] * 40),  # type: ignore[arg-type]
        "cannot be evaluated; give": lambda: evaluate(str(folder / "e"), made),  # type: ignore[arg-type]
        "ks are 3;": lambda: evaluate(made, made, ks=3),  # type: ignore[arg-type]
        "depth is '3';": lambda: evaluate(made, made, depth="3"),  # type: ignore[arg-type]
        "depth is -1;": lambda: evaluate(made, made, depth=-1),
        "the embeddings are None;": lambda: build_index(None, "exact", any_),  # type: ignore[arg-type]
        r"the embeddings are \['e'\];": lambda: build_index(["e"], "exact", any_),  # type: ignore[list-item]
        r"options are \['m=3'\];": lambda: build_index([made], "hnsw", any_, options=["m=3"]),  # type: ignore[arg-type]
        r"vectors have shape \(2,\);": lambda: Labelled([1, 2], ["a", "b"], ["x", "y"]),  # type: ignore[arg-type]
    }
    for message, call in wrong.items():
        with pytest.raises(BadInput, match=message):
            call()
    assert not (folder / "new").exists()


def test_a_folder_may_be_text_and_one_set_stand_alone(folder: Path, tmp_path: Path) -> None:
    made = open_embeddings(str(folder / "e"))
    for name, sets in {"one": made, "list": [made], "generator": (each for each in [made])}.items():
        facts = build_index(sets, "exact", str(tmp_path / name))  # type: ignore[arg-type]
        assert facts.rows == len(open_index(str(tmp_path / name)).index) == 40


@pytest.mark.parametrize("name", BACKENDS)
def test_options_of_backends_have_their_types(name: str) -> None:
    plugin = indexer_plugin(name)
    options = {"exact": "device", "faiss": "seed"}.get(name, "m" if "hnsw" in name else "n_lists")
    options = {"vamana": "degree", "milvus": "m", "pgvector": "m"}.get(name, options)
    for wrong in ([1], object(), 2.5, True, *(() if name == "exact" else ("16",))):
        with pytest.raises(BadInput, match=f"{options} is .*; give it|{options} .*; give"):
            plugin(**{options: wrong})
    if name != "exact":
        made = plugin(**{options: np.int64(16)})
        assert getattr(made, options) == 16 and type(getattr(made, options)) is int
    assert plugin(metric="cosine").metric is Metric.COSINE

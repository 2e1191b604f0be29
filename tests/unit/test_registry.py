"""Plug-ins by name."""

import subprocess
import sys

import pytest

from retrieval.contracts import Metric
from retrieval.errors import BadInput, UnknownName
from retrieval.registry import encoder_names, indexer_names, make_indexer, open_encoder


def test_our_own_are_registered() -> None:
    assert {"siamese", "autoencoder", "pretrained", "toy"} <= set(encoder_names())
    assert {"exact", "ivf", "hnsw"} <= set(indexer_names())


def test_names_that_are_not_there_list_those_that_are() -> None:
    with pytest.raises(UnknownName, match="unknown encoder 'siames'; did you mean 'siamese'"):
        open_encoder("siames")
    with pytest.raises(
        UnknownName, match=r"unknown backend 'hsnw'; .*exact, faiss, hnsw, hnsw-pca"
    ):
        make_indexer("hsnw", {})


def test_an_argument_that_an_encoder_does_not_take() -> None:
    with pytest.raises(BadInput, match="encoder 'toy' takes no argument, got 'toy:big'"):
        open_encoder("toy:big")


def test_options_given_as_text_take_the_type_of_the_field() -> None:
    indexer = make_indexer("hnsw", {"m": "8", "metric": "euclidean"})
    assert (indexer.m, indexer.metric) == (8, Metric.EUCLIDEAN)  # type: ignore[attr-defined]
    assert make_indexer("ivf", {"n_lists": "auto"}).n_lists is None  # type: ignore[attr-defined]
    assert make_indexer("ivf", {"n_lists": "7"}).n_lists == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": "many"}, "option m cannot be 'many'; give it a whole number"),
        ({"m": "1.5"}, "option m cannot be '1.5'"),
        ({"metric": "near"}, "there are: cosine, euclidean, inner_product, manhattan"),
        ({"links": "8"}, "unknown option of backend hnsw 'links'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make_indexer("hnsw", options)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import retrieval, retrieval.errors, cli.main", "numpy pyarrow torch faiss hnswlib"),
        ("import retrieval.registry as r; r.make_indexer('hnsw', {})", "faiss torch"),
        ("import retrieval.registry as r; r.make_indexer('exact', {})", "hnswlib torch"),
        ("import retrieval.registry as r; r.open_encoder('toy')", "torch faiss timm"),
        ("import retrieval.registry as r; r.open_encoder('siamese')", "timm torchvision faiss"),
    ],
)
def test_nothing_is_imported_before_it_is_named(code: str, absent: str) -> None:
    check = f"{code}; import sys; print(*(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

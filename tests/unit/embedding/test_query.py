"""Queries of pictures and words: their vector, their weights, and what they refuse."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encoders.toy import Toy
from retrieval import Query, Searcher, Weights, build_index, open_embeddings
from retrieval.contracts import Metric, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.encode import encode_source
from retrieval.embedding.queries import is_words
from retrieval.embedding.query import parsed_weights
from retrieval.errors import BadImage, BadInput, UnknownName
from retrieval.images import open_source

UNITS = np.eye(4, dtype=np.float32)
NUMBERS = st.floats(-10, 10).filter(lambda x: x == 0 or abs(x) > 1e-3)


class Cosine(Toy):
    """The toy encoder, for the cosine distance."""

    metric = Metric.COSINE
    fingerprint = "c" * 64


def solid(*color: int) -> Image.Image:
    return Image.new("RGB", (8, 8), color)


def joined(query: Query, metric: Metric = Metric.COSINE) -> Vectors:
    pictures = UNITS[: len(query.pictures)]
    words = UNITS[2 : 2 + len(query.words)]
    return query.joined(metric, pictures, words)[0]


def test_the_parts_of_a_query_are_added() -> None:
    query = Query(["a.png"], "snow", "people")
    np.testing.assert_allclose(joined(query), np.array([1, 0, 1, -0.5]) / 1.5, atol=1e-6)
    both = Query(["a.png", "b.png"], ["snow", "ice"])
    np.testing.assert_allclose(joined(both), [0.5, 0.5, 0.5, 0.5], atol=1e-6)
    unlike = Query("a.png", unlike="b.png")
    np.testing.assert_allclose(joined(unlike), np.array([2, -1, 0, 0]) / 5**0.5, atol=1e-6)
    plain = Query("a.png", "snow")
    np.testing.assert_allclose(joined(plain, Metric.EUCLIDEAN), [1, 0, 1, 0], atol=1e-6)


@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0.01, 100))
def test_weights(images: float, text: float, without: float, factor: float) -> None:
    if not (images or text or without):
        return
    vector = joined(Query("a.png", "snow", "people", weights=Weights(images, text, without)))
    expected = np.array([images, 0, text, -without])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    larger = Weights(images * factor, text * factor, without * factor)
    again = joined(Query("a.png", "snow", "people", weights=larger))
    np.testing.assert_allclose(vector, again, atol=1e-5)


def test_a_weight_of_0_leaves_a_part_out_and_a_negative_one_excludes_it() -> None:
    without_text = Query("a.png", "snow", weights=Weights(text=0))
    np.testing.assert_array_equal(joined(without_text), joined(Query("a.png")))
    excluded = Query("a.png", "snow", weights=Weights(text=-0.5))
    np.testing.assert_array_equal(joined(excluded), joined(Query("a.png", without="snow")))
    only = Query("a.png", "snow", weights=Weights(images=0))
    np.testing.assert_array_equal(joined(only), UNITS[2])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e300, "1", None, True])
def test_weights_are_finite_numbers(wrong: object) -> None:
    with pytest.raises(BadInput, match="give a finite number"):
        Weights(text=wrong)  # type: ignore[arg-type]


def test_weights_of_the_command_line() -> None:
    assert parsed_weights([]) == Weights()
    assert parsed_weights(["images=0.5", "not = 2", "text=-1"]) == Weights(0.5, -1, 2)
    with pytest.raises(UnknownName, match="unknown part of a query 'image'; did you mean"):
        parsed_weights(["image=1"])
    for wrong, reason in [
        ("text=much", "the weight of text is 'much', not a number; write text=0.5"),
        ("text", "has no number"),
    ]:
        with pytest.raises(BadInput, match=reason):
            parsed_weights([wrong])
    with pytest.raises(BadInput, match="give a finite number"):
        parsed_weights(["text=nan"])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "the query is empty; give an image, a text, or both"),
        ({"texts": " \t"}, "a text is empty; give words"),
        ({"texts": [math.nan]}, "a text is nan; give a string"),
        ({"without": ["x", None]}, "a text is None; give a string"),
        ({"texts": "x", "weights": 3}, r"the weights are 3; give Weights\(…\)"),
        ({"images": 3}, "is not an image"),
    ],
)
def test_what_is_no_query_is_refused(query: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Query(**query)  # type: ignore[arg-type]


def test_parts_that_cancel_each_other_out_are_refused() -> None:
    embedder = Embedder.of(Cosine())
    with pytest.raises(BadInput, match="cancel each other out; change the words or the weights"):
        embedder.embed_query(Query(texts="red", without="red", weights=Weights(without=1)))
    with pytest.raises(BadInput, match="all parts of the query have the weight 0; give one of"):
        embedder.embed_query(Query(texts="red", weights=Weights(text=0)))
    with pytest.raises(BadInput, match="the texts are None; give a string, or several"):
        embedder.embed_texts(None)  # type: ignore[arg-type]


def test_the_vector_of_a_query_of_images_and_words() -> None:
    embedder = Embedder.of(Cosine())
    vector = embedder.embed_query(Query(solid(255, 0, 0), "blue"))
    np.testing.assert_allclose(vector, [[0.5**0.5, 0, 0.5**0.5]], atol=1e-6)
    alone = embedder.embed_query(Query([solid(255, 0, 0), solid(0, 0, 9)]))
    np.testing.assert_allclose(alone, vector, atol=1e-6)
    with pytest.raises(BadImage, match=r"gone\.png"):
        embedder.embed_query(Query("gone.png", "blue"))


def test_a_searcher_takes_a_query(photos: Path, tmp_path: Path) -> None:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index")
    [hits] = searcher.search(Query(texts=["red", "red"], without="blue"), k=5)
    assert [hit.label for hit in hits] == ["red"] * 5
    both = searcher.search([Query(texts="red"), Query(texts="blue")], k=2)
    assert [hit.label for hits in both for hit in hits] == ["red", "red", "blue", "blue"]
    [filtered] = searcher.search(Query(texts="red"), k=2, where="label=blue")
    assert [hit.label for hit in filtered] == ["blue"] * 2
    with pytest.raises(BadInput, match="k is 99"):
        searcher.search(Query("gone.png"), k=99)


class Short(Toy):
    """The toy encoder, which reads three words."""

    max_tokens = 3

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_a_text_that_is_cut_is_noted() -> None:
    notes: list[str] = []
    embedder = Embedder.of(Short())
    embedder.embed_texts(["red blue", "one two three four " * 1000], notes.append)
    [note] = notes
    assert "has 4,000 tokens, and toy reads 3: the rest is ignored" in note
    assert len(note) < 250
    embedder.embed_texts("one two three", notes.append)
    assert len(notes) == 1


@pytest.mark.parametrize("text", ["红色的车", "🚗🚙", "\ud800 red", "x" * 10_000, "a\0b", "سيارة"])
def test_any_text_is_embedded(text: str) -> None:
    assert np.isfinite(Embedder.of(Toy()).embed_texts(text)).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a dog on a beach", True),
        ("dog", True),
        ("what is this?", True),
        ("St. Moritz in winter", True),
        ("3 dogs, 2 cats.", True),
        ("犬", True),
        ("x" * 10_000, True),
        ("img.png", False),
        ("my dog.jpg", False),
        ("photos/dog", False),
        ("./dog", False),
        ("~", False),
        (".", False),
        ("*", False),
        ("dog*", False),
        ("images.parquet#3", False),
        ("https://example.org/dog", False),
        ("C:\\photos", False),
        ("", False),
        (" ", False),
    ],
)
def test_words_are_told_from_paths(given: str, words: bool) -> None:
    assert is_words(given) == words


def test_the_name_of_a_file_is_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_words("dog")
    (tmp_path / "dog").mkdir()
    assert not is_words("dog")

"""The one door from queries to vectors, and text columns that name their hits."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encoders.toy import Toy
from retrieval import Searcher, open_embeddings
from retrieval.contracts import Encoder, Images, Vectors
from retrieval.embedding import embed
from retrieval.embedding.embed import Embedder
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import Item, open_source
from retrieval.index.build import build_index
from retrieval.index.text_column import TextColumn
from retrieval.storage.sets.manifest import EncoderFacts
from retrieval.testing import check_encoder


class ImagesOnly(Toy):
    """The toy encoder without words."""

    encode_text = None  # type: ignore[assignment]


class Counted(Toy):
    """The toy encoder, which notes how many images each call encodes."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, images: Images) -> Vectors:
        self.calls.append(len(images))
        return super().encode(images)


def solid(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 0, 0))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that an embedder of toy opens, in order; both work."""
    order: list[str] = []

    def from_cache(fingerprint: str, device: str) -> Encoder:
        assert fingerprint == Toy.fingerprint
        order.append(f"cache {device}")
        return Toy()

    def registered(name: str, device: str) -> Encoder:
        order.append(f"{name} {device}")
        return Toy()

    monkeypatch.setattr(embed, "open_export", from_cache)
    monkeypatch.setattr(embed, "open_encoder", registered)
    return order


def test_errors_and_vectors_keep_their_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "CHUNK_IMAGES", 2)
    solid(200).save(tmp_path / "file.png")
    encoder = Counted()
    gone, bad = str(tmp_path / "gone.png"), Item("b", None, "b.png", BadImage("b.png", "damaged"))
    images = [solid(0), gone, tmp_path / "file.png", b"no image", bad, solid(100), solid(50)]
    embedded = Embedder.of(encoder).embed(iter(images))
    assert embedded.positions.tolist() == [0, 2, 5, 6]
    expected = np.array([0, 200, 100, 50]) / 255
    np.testing.assert_allclose(embedded.vectors[:, 0], expected, atol=1e-6)
    assert {position: error.path for position, error in embedded.errors.items()} == {
        1: gone,
        3: "4 of those given",
        4: "b.png",
    }
    assert encoder.calls == [1, 1, 1, 1]


def test_nothing_to_embed() -> None:
    embedded = Embedder.of(Toy()).embed([])
    assert (embedded.vectors.shape, embedded.positions.size, embedded.errors) == ((0, 3), 0, {})
    assert Embedder.of(Toy()).embed_images([]).shape == (0, 3)


def test_embed_images_raises_the_first_error(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"one\.png"):
        Embedder.of(Toy()).embed_images([solid(1), tmp_path / "one.png", tmp_path / "two.png"])
    with pytest.raises(BadInput, match="a float is not an image"):
        Embedder.of(Toy()).embed_images([1.5])  # type: ignore[list-item]


def test_few_images_use_the_cached_network(opened: list[str]) -> None:
    embedder = Embedder(EncoderFacts.of(Toy()))
    assert opened == [], "opened by the first query"
    embedder.embed_images([solid(1)] * embed.MAX_ONNX_IMAGES)
    embedder.embed_images(solid(1))
    assert opened == ["cache auto"]


def test_many_images_use_the_registered_encoder_from_then_on(opened: list[str]) -> None:
    embedder = Embedder(EncoderFacts.of(Toy()), "cpu")
    embedder.embed_images([solid(1)] * (embed.MAX_ONNX_IMAGES + 1))
    embedder.embed_images(solid(1))
    assert opened == ["toy cpu"]


def test_the_registered_encoder_opens_where_the_cache_has_none(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "open_export", lambda fingerprint, device: None)
    Embedder(EncoderFacts.of(Toy())).embed_images(solid(1))
    assert opened == ["toy auto"]


def test_another_version_of_the_encoder_is_refused() -> None:
    wanted = EncoderFacts("toy", "f" * 64)
    with pytest.raises(Mismatch, match=r"photos was built with encoder toy \(ffffffff\), not with"):
        Embedder(wanted, encoder=Toy(), owner="photos")
    with pytest.raises(Mismatch, match=r"the index was built with encoder toy \(ffffffff\)"):
        Embedder(wanted).embed_images(solid(1))


def test_threads_open_one_encoder_and_take_turns(opened: list[str]) -> None:
    embedder = Embedder(EncoderFacts.of(Toy()))
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda level: embedder.embed_images(solid(level))[0, 0], range(64))]
    np.testing.assert_allclose(found, np.arange(64) / 255, atol=1e-6)
    assert opened == ["cache auto"]


def test_words_become_vectors_where_the_encoder_takes_them() -> None:
    embedder = Embedder.of(Toy())
    np.testing.assert_array_equal(embedder.embed_texts("lime"), [[0, 1, 0]])
    np.testing.assert_array_equal(
        embedder.embed_texts(iter(["blue", "red"])), [[0, 0, 1], [1, 0, 0]]
    )
    assert embedder.embed_texts([]).shape == (0, 3)
    with pytest.raises(BadInput, match="encoder toy cannot embed text; search by image"):
        Embedder.of(ImagesOnly()).embed_texts("green")


class Forgetful(Toy):
    """An encoder whose text vectors depend on the batch."""

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        return super().encode_text(texts) + np.float32(len(texts))


def test_the_contract_includes_words() -> None:
    check_encoder(Toy())
    with pytest.raises(AssertionError, match="encoded one by one, a text has another embedding"):
        check_encoder(Forgetful())


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Path:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "index")
    return tmp_path / "index"


def test_search_text(index: Path) -> None:
    searcher = Searcher.open(index)
    [green, blue] = searcher.search_text(["green", "blue"], k=3)
    assert [hit.label for hit in green + blue] == ["green"] * 3 + ["blue"] * 3
    [hits] = searcher.search_text("green", k=2, where="label=red")
    assert [hit.label for hit in hits] == ["red"] * 2
    with pytest.raises(BadInput, match="cannot embed text; search by image, or encode"):
        Searcher.open(index, encoder=ImagesOnly()).search_text("green")


def test_search_files_names_what_was_read_and_what_was_not(index: Path, photos: Path) -> None:
    (photos / "red" / "broken.png").write_bytes(b"no image")
    one = photos / "blue" / "3.png"
    answers, skipped = Searcher.open(index).search_files([one, photos / "red"], k=2)
    assert [answer.name for answer in answers[:2]] == [str(one), str(photos / "red" / "0.png")]
    assert len(answers) == 11
    assert answers[0].label == "blue", "of its own row in the index"
    assert {answer.label for answer in answers[1:]} == {"red"}
    assert all(answer.hits[0].path == answer.path for answer in answers)
    assert answers[0].to_json()["query"] == str(one)
    [bad] = skipped
    assert bad.path == str(photos / "red" / "broken.png")
    with pytest.raises(BadImage, match=r"broken\.png.*give an image that can be read"):
        Searcher.open(index).search_files(photos / "red" / "broken.png")


def test_a_wrong_filter_is_refused_before_images_are_read(index: Path) -> None:
    with pytest.raises(BadInput, match="k is 99"):
        Searcher.open(index).search_files("gone.png", k=99)


TEXT = st.one_of(st.none(), st.text(max_size=5))


def slices(values: list[str | None], cuts: list[int]) -> Iterator[pa.StringArray]:
    """Yield the values in arrays cut at these places, each a slice of a larger one."""
    ends = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, end in pairwise(ends):
        padded = pa.array([None, "é", *values[start:end], "more"], pa.string())
        yield padded.slice(2, end - start)


@given(st.lists(TEXT, min_size=1), st.lists(st.integers(0, 30), max_size=3), st.data())
def test_text_columns_give_the_values_of_arrow(
    values: list[str | None], cuts: list[int], data: st.DataObject
) -> None:
    column = TextColumn(pa.chunked_array([*slices(values, cuts)], pa.string()))
    rows = data.draw(st.lists(st.integers(0, len(values) - 1)))
    assert column.values(rows) == [values[row] for row in rows]

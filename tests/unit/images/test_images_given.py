"""Images and vectors as Python programs have them, given to a search."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.toy import Toy
from retrieval import Searcher, open_embeddings
from retrieval.contracts import Framing
from retrieval.embedding.embed import Embedder
from retrieval.embedding.encode import encode_source
from retrieval.embedding.queries import query_images
from retrieval.errors import BadImage, BadInput, Mismatch
from retrieval.images import frame_given, open_source
from retrieval.index.build import build_index
from retrieval.pairs.comparing import ImagePair, compare
from retrieval.registry import indexer_names, make_indexer

BACKENDS = [name for name in indexer_names() if name not in ("milvus", "pgvector")]


@pytest.fixture
def searcher(photos: Path, tmp_path: Path) -> Searcher:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "index")
    return Searcher.open(tmp_path / "index")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture without loss, so that every form of it has the same pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def written(image: Image.Image) -> io.BytesIO:
    """A buffer that has just been written, and stands at its end."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer


def entry(path: Path) -> os.DirEntry[str]:
    with os.scandir(path.parent) as entries:
        return next(each for each in entries if each.name == path.name)


def closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "entry of a folder": entry,
    "open file": lambda path: path.open("rb"),
    "buffer": lambda path: written(Image.open(path)),
    "Pillow": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
    "RGBA array": lambda path: np.asarray(Image.open(path).convert("RGBA")),
    "turned array": lambda path: np.asarray(Image.open(path)).transpose(1, 0, 2).transpose(1, 0, 2),
    "tensor": lambda path: torch.from_numpy(np.array(Image.open(path))),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_image_in_any_form(searcher: Searcher, picture: Path, form: str) -> None:
    right = searcher.search_images([picture], k=5)
    assert len(right) == 1
    given = FORMS[form](picture)
    # A file is read from its start each time.
    assert searcher.search_images(given, k=5) == right
    assert searcher.search_images([given], k=5) == right
    assert searcher.search_images((given,), k=5) == right
    if form == "open file":
        assert not given.closed
        given.close()


def test_several_images(searcher: Searcher, photos: Path, picture: Path) -> None:
    paths = sorted(photos.glob("*/[0-2].png"))
    right = [hits for path in paths for hits in searcher.search_images([path], k=3)]
    assert searcher.search_images(paths, k=3) == right
    assert searcher.search_images([str(path) for path in paths], k=3) == right
    assert searcher.search_images((path for path in paths), k=3) == right
    assert searcher.search_images(np.array([str(path) for path in paths]), k=3) == right
    stack = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert searcher.search_images(stack, k=3) == right
    assert searcher.search_images([*stack], k=3) == right
    mixed = [paths[0], str(paths[1]), paths[2].read_bytes(), Image.open(paths[3]), stack[4]]
    assert searcher.search_images(mixed, k=3) == right[:5]


def test_grey_arrays(searcher: Searcher) -> None:
    grey = np.full((10, 12), 77, np.uint8)
    colours = np.full((10, 12, 3), 77, np.uint8)
    assert searcher.search_images(grey, k=4) == searcher.search_images(colours, k=4)
    assert len(searcher.search_images(grey, k=4)) == 1


@pytest.mark.parametrize(
    "nothing",
    [[], (), np.zeros((0, 5, 5, 3), np.uint8), np.array([]), iter(())],
    ids=["[]", "()", "array", "no paths", "iter"],
)
def test_no_images_have_no_answers(searcher: Searcher, nothing: Any) -> None:
    assert searcher.search_images(nothing, k=3) == []


def test_an_image_of_pillow_is_upright_and_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    framing = Framing(8)
    opened = Image.open(tmp_path / "turned.png")
    from_file = frame_given(tmp_path / "turned.png", framing, "a")
    from_pillow = frame_given(opened, framing, "b")
    np.testing.assert_array_equal(from_pillow, from_file)
    assert opened.size == (16, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_of_pillow_is_read_as_its_file(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(values).convert(mode)
    else:
        image = Image.fromarray(values[..., :3]).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    from_file = frame_given(path, Framing(9), "a")
    from_pillow = frame_given(image, Framing(9), "b")
    np.testing.assert_array_equal(from_pillow, from_file)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, BadInput, "a NoneType is not an image; give a path, bytes"),
        (3, BadInput, "a int is not an image"),
        ([None], BadInput, "a NoneType is not an image"),
        ([[1, 2]], BadInput, "a list is not an image"),
        (np.zeros((4, 4)), BadInput, "image 1 of those given is an array of float64; give uint8"),
        (np.zeros((3, 8, 9), np.uint8), BadInput, r"shape \(3, 8, 9\); give \(h, w\)"),
        (np.zeros(4, np.uint8), BadInput, r"shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), BadInput, r"shape \(0, 4, 3\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), BadInput, r"shape \(4, 4, 1\)"),
        (b"", BadImage, "cannot read image 1 of those given: empty file"),
        ([b"no image"], BadImage, "cannot read image 1 of those given: not an image"),
        (io.BytesIO(b"\x89PNG\r\n"), BadImage, "truncated or damaged"),
        (io.StringIO("text"), BadInput, "open as text; open it with mode 'rb'"),
        (io.TextIOWrapper(io.BytesIO(b"\xff")), BadInput, "open as text; open it with mode 'rb'"),
        (closed(), BadImage, "image 1 of those given: I/O operation on closed file"),
        (torch.zeros(3, 3, requires_grad=True), BadInput, "a Tensor is not an image"),
        ("missing.png", BadImage, "cannot read image missing.png: no such file"),
        (Image.new("RGB", (0, 3)), BadImage, "no pixels"),
        (Image.new("F", (3, 3)), BadImage, "pixels of mode F"),
    ],
)
def test_objects_that_are_not_images_are_refused(
    searcher: Searcher, images: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        searcher.search_images(images, k=1)


def test_vectors_in_any_form(searcher: Searcher) -> None:
    queries = np.random.default_rng(0).random((4, 3), np.float32)
    right = searcher.search(queries, k=5)
    assert len(right) == 4
    for form in (
        queries.tolist(),
        [*queries],
        queries.astype(np.float64),
        np.asfortranarray(queries),
        torch.from_numpy(queries),
        tuple(map(tuple, queries.tolist())),
    ):
        assert searcher.search(form, k=5) == right  # type: ignore[arg-type]
    assert searcher.search([[0, 1, 0]], k=5) == searcher.search([[0.0, 1.0, 0.0]], k=5)
    assert searcher.search([], k=5) == []
    assert searcher.search(queries[:0], k=5) == []


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        ([0.1, 0.2, 0.3], BadInput, r"queries have shape \(3,\); give \(q, 3\)"),
        ([[1, 2], [3]], BadInput, "queries are not rows of numbers, all of one length"),
        (["a.png"], BadInput, "queries are not rows of numbers"),
        ("a.png", BadInput, "queries are not rows of numbers"),
        (None, BadInput, "shape"),
        ([[1, 2]], Mismatch, "queries have 2 dimensions, the index has 3"),
        ([[1, 2, float("nan")]], BadInput, "query 0 is not finite"),
    ],
)
def test_invalid_queries_are_refused(
    searcher: Searcher, queries: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        searcher.search(queries, k=1)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_takes_lists(name: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    options = {"seed": 0} if name in ("hnsw", "ivf", "ivfpq") else {}
    index = make_indexer(name, {"metric": "euclidean", **options}).build(vectors)
    for count in (0, 1, 3):
        right = index.search(vectors[:count], 5)
        found = index.search(vectors[:count].tolist(), 5)  # type: ignore[arg-type]
        assert found.rows.shape == (count, 5)
        np.testing.assert_array_equal(found.rows, right.rows)
        np.testing.assert_array_equal(found.distances, right.distances)
    from_lists = make_indexer("exact", {"metric": "euclidean"}).build(vectors.tolist())  # type: ignore[arg-type]
    assert from_lists.search(vectors, 1).rows[:, 0].tolist() == list(range(200))


def test_embedding_and_comparing_take_paths_and_a_single_one(picture: Path, photos: Path) -> None:
    other = photos / "red" / "0.png"
    embedder = Embedder.of(Toy())
    vectors = embedder.embed_images([str(picture), str(other)])
    np.testing.assert_array_equal(embedder.embed_images([picture, other]), vectors)
    np.testing.assert_array_equal(embedder.embed_images(str(picture)), vectors[:1])
    np.testing.assert_array_equal(embedder.embed_images(picture), vectors[:1])
    [(_, answer)], failed = compare([ImagePair.of(picture, other)], Toy(), "euclidean", None)
    assert not failed
    assert answer.distance == pytest.approx(float(np.linalg.norm(vectors[0] - vectors[1])))
    for given in (str(picture), picture, [picture], [str(picture)]):
        [query] = query_images(given)
        assert query.name == query.path == str(picture)

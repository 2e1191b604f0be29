"""Exact copies by the hashes of a set of embeddings."""

from pathlib import Path

from PIL import Image

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.pairs.exact_copies import Distinct, current_contents
from retrieval.storage.sets.embeddings import open_embeddings


def encoded(folder: Path, out: Path) -> None:
    encode_source(open_source(str(folder)), Toy(), out)


def test_hashes_tell_copies_that_are_still_there(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, color in (("a", 10), ("b", 10), ("c", 10), ("d", 10), ("e", 20), ("f", 30)):
        Image.new("RGB", (9, 9), (color, 0, 0)).save(photos / f"{name}.png")
    encoded(photos, tmp_path / "embeddings")
    embeddings = open_embeddings(tmp_path / "embeddings")
    (contents,) = current_contents([embeddings])
    assert Distinct.of([contents]).of_rows[0].tolist() == [0, 0, 0, 0, 1, 2]
    Image.new("RGB", (9, 9), (99, 0, 0)).save(photos / "b.png")  # another picture
    (photos / "c.png").unlink()
    (photos / "d.png").touch()
    (contents,) = current_contents([embeddings])
    assert contents[2] is None
    assert Distinct.of([contents]).of_rows[0].tolist() == [0, 1, 2, 0, 3, 4]


def test_images_that_are_no_files_have_no_hashes(tmp_path: Path) -> None:
    encode_source(open_source("digits", limit=5), Toy(), tmp_path / "digits")
    contents = current_contents([open_embeddings(tmp_path / "digits")])
    assert contents == [[None] * 5]


def test_copies_are_one_image_in_two_sets() -> None:
    distinct = Distinct.of([[b"x", None, b"x"], [b"y", b"x", None, b"y"]])
    assert [rows.tolist() for rows in distinct.of_rows] == [[0, 1, 0], [2, 0, 3, 2]]
    assert len(distinct) == 4
    assert distinct.rows == ([[0, 2], [1], [], []], [[1], [], [0, 3], [2]])
    assert distinct.firsts() == [(0, 0), (0, 1), (1, 0), (1, 2)]
    assert len(Distinct.of([[]])) == 0

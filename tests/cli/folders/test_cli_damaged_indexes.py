"""Damaged index folders."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cli.damage import PART, Copied, cut, edit_json, flip_a_bit
from tests.cli.gallery import Gallery
from tests.cli.running import Retr

INDEX_DAMAGE: Mapping[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut": (lambda folder: cut(native(folder)), ["damaged", "index again"]),
    "one bit": (lambda folder: flip_a_bit(native(folder)), ["damaged", "checksum mismatch"]),
    "missing": (lambda folder: native(folder).unlink(), ["missing"]),
    "rows cut": (lambda folder: cut(folder / "rows.parquet"), ["rows.parquet", "damaged"]),
    "no rows": (lambda folder: (folder / "rows.parquet").unlink(), ["rows.parquet", "missing"]),
    "no JSON": (lambda folder: cut(folder / "index.json"), ["index.json"]),
    "no index.json": (
        lambda folder: (folder / "index.json").unlink(),
        ["not an index", "retr index"],
    ),
    "newer": (
        lambda folder: edit_json(folder / "index.json", version=12),
        ["version 12", "newer retr"],
    ),
    "dimension": (lambda folder: edit_json(folder / "index.json", dim=4), ["4", "3"]),
    "rows": (lambda folder: edit_json(folder / "index.json", rows=61), ["60", "61"]),
    "backend": (
        lambda folder: edit_json(folder / "index.json", backend="annoy"),
        ["annoy", "exact, faiss, hnsw, hnsw-pca, ivf, ivfpq"],
    ),
}


def native(folder: Path) -> Path:
    """Return the index file of the backend's library."""
    (file,) = folder.glob("index.[fh]*")
    return file


@pytest.mark.parametrize(
    ("backend", "damage"),
    [*(("exact", damage) for damage in INDEX_DAMAGE), ("hnsw", "cut"), ("hnsw", "one bit")],
)
def test_a_damaged_index_is_not_searched(
    retr: Retr, gallery: Gallery, copied: Copied, backend: str, damage: str
) -> None:
    folder = copied(gallery.index(backend))
    harm, said = INDEX_DAMAGE[damage]
    harm(folder)
    message = retr.refused("search", gallery.image, "--index", folder)
    for words in said:
        assert words in message


def test_verify_finds_a_damaged_index(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.index())
    flip_a_bit(native(folder))
    outcome = retr.run("verify", folder, "--json")
    assert outcome.code == 2
    assert outcome.document["ok"] is False
    assert "index.faiss is damaged" in outcome.document["problems"][0]


def test_damaged_index_can_be_rebuilt(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    for damage in ("cut", "no JSON", "newer"):
        folder = copied(gallery.index())
        INDEX_DAMAGE[damage][0](folder)
        assert (
            retr.json("index", gallery.embeddings, "--backend", "exact", "--out", folder)["rows"]
            == 60
        )
        assert retr.json("verify", folder)["ok"]
        shutil.rmtree(folder)


def test_failed_build_keeps_the_old_index(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    index, embeddings = copied(gallery.index("hnsw")), copied(gallery.embeddings)
    flip_a_bit(embeddings / PART)
    retr.refused("index", embeddings, "--out", index, "--set", "m=9")
    retr.refused("index", gallery.embeddings, "--out", index, "--set", "m=1")
    assert retr.json("verify", index)["ok"]

"""Output folders that cannot be written, or hold something else."""

import os

import pytest

from retrieval.storage.files import locked
from tests.cli.damage import Copied
from tests.cli.gallery import Gallery
from tests.cli.running import Retr


def outputs(gallery: Gallery) -> dict[str, list[str]]:
    return {
        "encode": ["encode", str(gallery.images), "--encoder", "toy"],
        "index": ["index", str(gallery.embeddings), "--backend", "exact"],
    }


@pytest.mark.parametrize("command", ["encode", "index"])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("full", "full holds other files (notes.txt"),
        ("file", "file is a file"),
        ("file/below", "file"),
        ("file/far/below", "file"),
        ("/proc/retr", "cannot write into /proc/retr"),
    ],
)
def test_unusable_output_folder_is_left_unchanged(
    retr: Retr, gallery: Gallery, command: str, out: str, said: str
) -> None:
    (retr.cwd / "full").mkdir()
    (retr.cwd / "full" / "notes.txt").write_text("mine")
    (retr.cwd / "file").write_text("mine too")
    assert said in retr.refused(*outputs(gallery)[command], "--out", out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
@pytest.mark.parametrize("command", ["encode", "index"])
def test_a_read_only_folder_is_named(retr: Retr, gallery: Gallery, command: str) -> None:
    (retr.cwd / "closed").mkdir(mode=0o555)
    for out in ("closed", "closed/below"):
        message = retr.refused(*outputs(gallery)[command], "--out", out)
        assert "cannot write" in message
        assert out in message


def test_embeddings_and_index_do_not_overwrite_each_other(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    embeddings, index = copied(gallery.embeddings), copied(gallery.index())
    for command, out in (("encode", index), ("index", embeddings)):
        message = retr.refused(*outputs(gallery)[command], "--out", out)
        assert "holds other files" in message


def test_other_embeddings_are_not_overwritten(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.embeddings)
    message = retr.refused("encode", "digits", "--encoder", "toy", "--out", folder)
    assert "digits/train" in message
    message = retr.refused(*outputs(gallery)["encode"], "--dtype", "float16", "--out", folder)
    assert "as float32, not float16" in message


@pytest.mark.parametrize("command", ["encode", "index"])
def test_second_writer_is_refused(retr: Retr, gallery: Gallery, command: str) -> None:
    folder = retr.cwd / "made"
    folder.mkdir()
    with locked(folder):
        message = retr.refused(*outputs(gallery)[command], "--out", folder)
    assert "another process is writing into" in message
    assert retr.json(*outputs(gallery)[command], "--out", folder)["rows"] == 60


def test_damaged_workspace_is_reported(retr: Retr, gallery: Gallery) -> None:
    workspace = retr.cwd / "workspace"
    workspace.mkdir()
    (workspace / "latest.json").write_text("{")
    assert "latest.json" in retr.refused("search", gallery.image)
    (workspace / "latest.json").write_text('{"index": "/nowhere/at/all"}')
    assert "run 'retr index' first" in retr.refused("search", gallery.image)

"""`retr encode` of ordinary folders: which files are taken, and warnings of the others."""

import errno
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cli.main
from retrieval.images.folders import folder as folder_module
from tests.cli.gallery import BACKENDS
from tests.cli.pictures import picture, png, save
from tests.cli.running import Outcome, Retr

ENCODE = ("encode", "photos", "--encoder", "toy", "--out", "e")


@pytest.fixture
def photos(retr: Retr) -> Path:
    """Save three pictures of two labels."""
    for number, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        save(retr.cwd / "photos" / name, seed=number)
    return retr.cwd / "photos"


def encoded_here(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """Run the command in this process, where a test can replace functions."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["retr", *ENCODE, "--json"])
    code = cli.main.run()
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)


def test_passed_over_files_are_in_output_json_and_manifest(retr: Retr, photos: Path) -> None:
    for name in ("a/4.psd", "b/5.PSD", "6.svg"):
        (photos / name).write_bytes(b"some bytes")
    said = retr(*ENCODE).out
    assert "passed over: 3 files, .psd 2, .svg 1" in said.splitlines()
    kinds = {".psd": 2, ".svg": 1}
    assert retr.json(*ENCODE)["passed_over"] == kinds
    assert json.loads((retr.cwd / "e" / "manifest.json").read_text())["passed_over"] == kinds
    assert retr.json("info", "e")["passed_over"] == kinds
    assert "  passed over: 3 files, .psd 2, .svg 1" in retr("info", "e").out.splitlines()
    retr("index", "e", "--backend", "exact", "--out", "i")
    searched = retr("search", "photos", "--index", "i", "-k", "1")
    assert searched.err == "warning: passed over: 3 files, .psd 2, .svg 1\n"


def test_unreadable_subfolder_is_named(
    retr: Retr,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scandir = os.scandir

    def refused(folder: Path) -> "os._ScandirIterator[str]":
        if folder.name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(folder_module, "scandir", refused)
    outcome = encoded_here(retr.cwd, monkeypatch, capsys)
    assert outcome.err == f"warning: skipped folder {photos}/b: permission denied\n"
    assert (outcome.document["rows"], outcome.document["skipped_folders"]) == (2, 1)
    table = pq.read_table(retr.cwd / "e" / "skipped.parquet").to_pylist()
    assert [(row["path"], row["reason"], row["shard"]) for row in table] == [
        (f"{photos}/b", "permission denied", None)
    ]
    assert "skipped   0 images, 1 folder" in retr("info", "e").out
    retr("verify", "e")


def test_files_that_arrive_during_the_run_are_reported(
    retr: Retr,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import retrieval.embedding.encode

    bring_up_to_date = retrieval.embedding.encode.bring_up_to_date

    def meddled(*given: object, **named: object) -> object:
        save(photos / "a" / "0.png", seed=7)
        (photos / "b" / "3.png").unlink()
        return bring_up_to_date(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(retrieval.embedding.encode, "bring_up_to_date", meddled)
    outcome = encoded_here(retr.cwd, monkeypatch, capsys)
    assert (outcome.document["rows"], outcome.document["skipped"]) == (2, 1)
    assert outcome.err.splitlines() == [
        "warning: 1 image could not be read; e/skipped.parquet lists them with the reasons",
        "warning: 1 file arrived during the run and is not encoded; run the same command "
        "again to encode the current files",
    ]


def test_data_set_with_the_name_of_a_folder_is_a_warning(retr: Retr) -> None:
    save(retr.cwd / "digits" / "1.png", seed=1)
    outcome = retr("encode", "digits", "--encoder", "toy", "--limit", "3", "--out", "e")
    assert outcome.err == (
        "warning: took the data set 'digits', not the folder of that name here; for that write "
        "./digits\n"
    )
    assert retr.json("encode", "./digits", "--encoder", "toy", "--out", "f")["rows"] == 1


def test_folders_of_splits_are_reported(retr: Retr) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png"):
        save(retr.cwd / "photos" / name, seed=1)
    outcome = retr(*ENCODE, "--json")
    assert outcome.document["rows"] == 2
    assert "took train, not test; choose with --split" in outcome.err
    tested = retr("encode", "photos", "--split", "test", "--encoder", "toy", "--out", "f")
    assert tested.err == ""
    labels = pq.read_table(retr.cwd / "f" / "part-00000.parquet")["label"].to_pylist()
    assert labels == ["cat"]


def test_file_name_that_is_not_utf8_works_in_every_command(retr: Retr, photos: Path) -> None:
    odd = os.fsencode(photos) + b"/a/caf\xe9.png"
    (photos / "a" / "2.png").rename(os.fsdecode(odd))
    save(photos / "a" / "2.png", seed=1)  # the same pixels
    retr(*ENCODE)
    retr("index", "e", "--backend", "exact", "--out", "i")
    (answer,) = retr.json("search", os.fsdecode(odd), "--index", "i", "-k", "2", "--sheet", "s.png")
    assert os.fsencode(answer["query"]) == odd
    assert odd in [os.fsencode(hit["path"]) for hit in answer["hits"]]
    assert all(Path(hit["path"]).is_file() for hit in answer["hits"])
    assert r"caf\udce9.png" in retr("search", os.fsdecode(odd), "--index", "i", "-k", "2").out
    found = retr.json("duplicates", "e", "--sheet", "d.png", "--out", "d.csv")
    assert found["unreadable"] == []
    assert [{pair["a"], pair["b"]} for pair in found["duplicates"]] == [
        {r"a/caf\udce9.png", "a/2.png"}
    ]


def test_label_that_is_not_utf8_is_filtered_raw_and_escaped(retr: Retr, photos: Path) -> None:
    (photos / "a").rename(photos / os.fsdecode(b"caf\xe9"))
    retr(*ENCODE)
    retr("index", "e", "--backend", "exact", "--out", "i")
    search = ["search", "photos/b/3.png", "--index", "i"]
    for typed in (os.fsdecode(b"label=caf\xe9"), r"label=caf\udce9"):
        (answer,) = retr.json(*search, "--where", typed)
        assert {hit["label"] for hit in answer["hits"]} == {r"caf\udce9"}
    assert r"'nix\udce9'" in retr.refused(*search, "--where", os.fsdecode(b"label=nix\xe9"))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "milvus"])
def test_output_folders_can_have_names_that_are_not_utf8(
    retr: Retr, photos: Path, backend: str
) -> None:
    odd = os.fsdecode(b"w\xe9rk")
    (retr.cwd / odd).mkdir()
    retr("encode", "photos", "--encoder", "toy", "--out", f"{odd}/e")
    retr("index", f"{odd}/e", "--backend", backend, "--out", f"{odd}/i")
    retr("verify", f"{odd}/i")
    (answer,) = retr.json("search", "photos/b/3.png", "--index", f"{odd}/i", "-k", "1")
    assert answer["hits"][0]["path"] == str(photos / "b" / "3.png")
    if backend == "exact":
        measured = ("--queries", f"{odd}/e", "--database", f"{odd}/e")
        kept = os.fsdecode(b"q\xe9.parquet")
        retr("eval", *measured, "--save", f"{odd}/{kept}")
        retr("eval", *measured, "--against", f"{odd}/{kept}")


def test_an_arrow_file_whose_name_is_not_utf8_is_read(retr: Retr) -> None:
    table = pa.table({"image": [png(picture(1)), png(picture(2))], "label": ["a", "b"]})
    file = retr.cwd / os.fsdecode(b"caf\xe9.arrow")
    with file.open("wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    assert retr.json("encode", file.name, "--encoder", "toy", "--out", "e")["rows"] == 2


def test_query_folder_wins_over_a_data_set_of_its_name(retr: Retr, photos: Path) -> None:
    retr(*ENCODE)
    retr("index", "e", "--backend", "exact", "--out", "i")
    save(retr.cwd / "digits" / "1.png", seed=1)
    (answer,) = retr.json("search", "digits", "--index", "i", "-k", "1")
    assert answer["query"] == str(retr.cwd / "digits" / "1.png")


def test_missing_permission_is_a_one_line_error(
    retr: Retr, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> bool:
        if path.name != "photos":
            return is_dir(path)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", refused)  # root could read every folder
    outcome = encoded_here(retr.cwd, monkeypatch, capsys)
    assert (outcome.code, outcome.err) == (
        2,
        "error: permission denied: photos; change its mode, or name another file\n",
    )

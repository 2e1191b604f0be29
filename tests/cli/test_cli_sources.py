"""`retr encode` on folders as people have them: what is taken, and what is said of the rest."""

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pictures import save
from running import Outcome, Retr

import cli.main
from retrieval.images.folders import folder as folder_module

ENCODE = ("encode", "photos", "--encoder", "toy", "--out", "e")


@pytest.fixture
def photos(retr: Retr) -> Path:
    """Three pictures of two labels."""
    for number, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        save(retr.cwd / "photos" / name, seed=number)
    return retr.cwd / "photos"


def encoded_here(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """The outcome of a run in this process, where a test may replace functions."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["retr", *ENCODE, "--json"])
    code = cli.main.run()
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)


def test_what_was_passed_over_is_in_the_table_the_json_and_the_manifest(
    retr: Retr, photos: Path
) -> None:
    for name in ("a/4.heic", "b/5.HEIC", "6.dng"):
        (photos / name).write_bytes(b"some bytes")
    said = retr(*ENCODE).out
    assert "passed over: 3 files, .heic 2, .dng 1" in said.splitlines()
    kinds = {".heic": 2, ".dng": 1}
    assert retr.json(*ENCODE)["passed_over"] == kinds
    assert json.loads((retr.cwd / "e" / "manifest.json").read_text())["passed_over"] == kinds
    assert retr.json("info", "e")["passed_over"] == kinds
    assert "  passed over: 3 files, .heic 2, .dng 1" in retr("info", "e").out.splitlines()
    retr("index", "e", "--backend", "exact", "--out", "i")
    searched = retr("search", "photos", "--index", "i", "-k", "1")
    assert searched.err == "warning: passed over: 3 files, .heic 2, .dng 1\n"


def test_a_sub_folder_that_may_not_be_read_is_named(
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
    assert table == [{"path": f"{photos}/b", "reason": "permission denied", "shard": None}]
    assert "skipped   0 images, 1 folder" in retr("info", "e").out
    retr("verify", "e")


def test_files_that_arrive_during_the_run_are_said(
    retr: Retr,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import retrieval.embedding.encode

    encode_source = retrieval.embedding.encode.encode_source

    def meddled(*given: object, **named: object) -> object:
        save(photos / "a" / "0.png", seed=7)
        (photos / "b" / "3.png").unlink()
        return encode_source(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(retrieval.embedding.encode, "encode_source", meddled)
    outcome = encoded_here(retr.cwd, monkeypatch, capsys)
    assert (outcome.document["rows"], outcome.document["skipped"]) == (2, 1)
    assert outcome.err.splitlines() == [
        "warning: 1 image could not be read; e/skipped.parquet says which and why",
        "warning: 1 file arrived during the run and is not in the set; to have all as they are "
        "now, encode again with another --out",
    ]


def test_a_data_set_of_the_name_of_a_folder_is_said(retr: Retr) -> None:
    save(retr.cwd / "digits" / "1.png", seed=1)
    outcome = retr("encode", "digits", "--encoder", "toy", "--limit", "3", "--out", "e")
    assert outcome.err == (
        "warning: took the data set 'digits', not the folder of that name here; for that write "
        "./digits\n"
    )
    assert retr.json("encode", "./digits", "--encoder", "toy", "--out", "f")["rows"] == 1


def test_the_folders_of_splits_are_said(retr: Retr) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png"):
        save(retr.cwd / "photos" / name, seed=1)
    outcome = retr(*ENCODE, "--json")
    assert outcome.document["rows"] == 2
    assert "took train, not test; choose with --split" in outcome.err
    tested = retr("encode", "photos", "--split", "test", "--encoder", "toy", "--out", "f")
    assert tested.err == ""
    labels = pq.read_table(retr.cwd / "f" / "part-00000.parquet")["label"].to_pylist()
    assert labels == ["cat"]


def test_a_name_that_is_not_utf8_goes_all_the_way(retr: Retr, photos: Path) -> None:
    odd = os.fsencode(photos) + b"/a/caf\xe9.png"
    (photos / "a" / "2.png").rename(os.fsdecode(odd))
    save(photos / "a" / "2.png", seed=1)  # of the same pixels
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

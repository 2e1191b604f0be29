"""Damaged and unfinished embeddings folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.storage.publishing import READY
from tests.cli.damage import PART, Copied, cut, edit_json, flip_a_bit, rewrite_shard
from tests.cli.gallery import Gallery
from tests.cli.running import Retr, snapshot
from tests.made import unpublish


def put_nan(columns: dict[str, Any]) -> None:
    columns["embedding"][17][1] = float("nan")


def put_infinity(columns: dict[str, Any]) -> None:
    columns["embedding"][17][1] = float("-inf")


def repeat_an_id(columns: dict[str, Any]) -> None:
    columns["id"][5] = columns["id"][31]


SHARD_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut": (lambda folder: cut(folder / PART), [PART, "damaged"]),
    "empty": (lambda folder: (folder / PART).write_bytes(b""), [PART, "damaged"]),
    "one bit": (lambda folder: flip_a_bit(folder / PART), [PART, "damaged", "checksum mismatch"]),
    "missing": (lambda folder: (folder / PART).unlink(), [PART, "missing"]),
    "NaN": (lambda folder: rewrite_shard(folder, put_nan), [PART, "NaN", "17"]),
    "infinity": (lambda folder: rewrite_shard(folder, put_infinity), [PART, "infinity", "17"]),
    "an id twice": (
        lambda folder: rewrite_shard(folder, repeat_an_id),
        ["duplicate id 'green/11.png'"],
    ),
}


MANIFEST_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no JSON": (lambda folder: cut(folder / "manifest.json"), ["manifest.json"]),
    "no UTF-8": (
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        ["manifest.json"],
    ),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[]"), ["manifest.json"]),
    "missing": (
        lambda folder: (folder / "manifest.json").unlink(),
        ["manifest.json not found", "retr encode"],
    ),
    "newer": (
        lambda folder: edit_json(folder / "manifest.json", version=7),
        ["version 7", "newer retr"],
    ),
    "another format": (
        lambda folder: edit_json(folder / "manifest.json", format="retr-index"),
        ["manifest.json", "retr-embeddings"],
    ),
    "incomplete": (
        lambda folder: edit_json(folder / "manifest.json", complete=False, shards=[]),
        ["not complete: 0 of 60", "retr encode"],
    ),
}


DAMAGE = {f"shard: {name}": each for name, each in SHARD_DAMAGE.items()} | {
    f"manifest: {name}": each for name, each in MANIFEST_DAMAGE.items()
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_embeddings_are_not_indexed(
    retr: Retr, gallery: Gallery, copied: Copied, damage: str
) -> None:
    folder = copied(gallery.embeddings)
    harm, said = DAMAGE[damage]
    harm(folder)
    message = retr.refused("index", folder, "--out", "index")
    for words in said:
        assert words in message


@pytest.mark.parametrize("damage", ["shard: one bit", "shard: NaN", "manifest: newer"])
def test_damaged_embeddings_are_not_evaluated(
    retr: Retr, gallery: Gallery, copied: Copied, damage: str
) -> None:
    folder = copied(gallery.embeddings)
    harm, said = DAMAGE[damage]
    harm(folder)
    for queries, database in ((folder, gallery.embeddings), (gallery.embeddings, folder)):
        message = retr.refused("eval", "--queries", queries, "--database", database)
        for words in said:
            assert words in message


@pytest.mark.parametrize(
    "damage", ["shard: cut", "shard: missing", "shard: an id twice", "manifest: incomplete"]
)
def test_verify_finds_damage(retr: Retr, gallery: Gallery, copied: Copied, damage: str) -> None:
    folder = copied(gallery.embeddings)
    harm, said = DAMAGE[damage]
    harm(folder)
    outcome = retr.run("verify", folder, "--json")
    assert (outcome.code, outcome.err) == (2, "")
    assert outcome.document["ok"] is False
    for words in said[:-1] or said:
        assert words in " ".join(outcome.document["problems"])


def test_verify_lists_all_problems(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.embeddings)
    flip_a_bit(folder / PART)
    shutil.copy(folder / PART, folder / "part-00001.parquet")
    outcome = retr.run("verify", folder)
    assert (outcome.code, outcome.err) == (2, "")
    assert "problem: " in outcome.out
    assert PART in outcome.out
    assert "part-00001.parquet is not in the manifest" in outcome.out
    quiet = retr.run("verify", folder, "--quiet")
    assert (quiet.code, quiet.out) == (2, "")
    assert quiet.err.startswith("error: ")
    assert len(quiet.err.splitlines()) == 1


def test_files_of_a_killed_run_are_ignored(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.embeddings)
    (folder / "part-00001.parquet.partial").write_bytes(b"PAR1 half a shard")
    made = retr.json("encode", gallery.images, "--encoder", "toy", "--out", folder)
    assert made["rows"] == 60
    assert retr.json("verify", folder)["ok"]
    assert retr.json("index", folder, "--backend", "exact", "--out", "index")["rows"] == 60


@pytest.mark.parametrize(
    "command",
    [
        ["search", "{image}", "--index", "{index}"],
        ["search", "{image}", "--index", "{index}", "--encoder", "toy"],
        ["eval", "--queries", "{e}", "--database", "{e}", "--index", "{index}"],
        ["info", "{index}"],
        ["verify", "{index}"],
        ["index", "--delete", "label=blue", "--out", "{index}"],
    ],
)
def test_any_command_finishes_a_publication_that_was_killed(
    retr: Retr, gallery: Gallery, copied: Copied, command: list[str]
) -> None:
    index = copied(gallery.index())
    places = {"image": gallery.image, "e": gallery.embeddings, "index": index}
    arguments = [argument.format(**places) for argument in command]
    if "--delete" not in command:
        expected = retr.json(*arguments)
    unpublish(index)
    document = retr.json(*arguments)
    assert "--delete" in command or document == expected
    assert retr.json("verify", index)["ok"]
    assert not (index / READY).exists()


@pytest.mark.parametrize("damage", ["cut", "one bit", "missing"])
def test_second_encode_repairs_a_damaged_shard(
    retr: Retr, gallery: Gallery, copied: Copied, damage: str
) -> None:
    folder = copied(gallery.embeddings)
    before = snapshot(folder)
    SHARD_DAMAGE[damage][0](folder)
    assert snapshot(folder) != before
    retr.json("encode", gallery.images, "--encoder", "toy", "--out", folder)
    assert snapshot(folder) == before

"""Embeddings and index folders that are damaged, half written, foreign or do not fit together."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Gallery
from made import unpublish
from numpy.typing import NDArray
from running import Retr, snapshot

from retrieval import open_embeddings, open_encoder, open_index
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.storage.files import locked, sealed, sha256_of
from retrieval.storage.publishing import READY
from retrieval.storage.shards import Dtype, EncoderFacts, Facts, ShardWriter, SourceFacts

PART = "part-00000.parquet"
Copied = Callable[[Path], Path]


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of the JSON object in the file."""
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))


def rewrite_shard(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the columns of the first shard, and mend its size and hash in the manifest."""
    path = folder / PART
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), path)
    shard = json.loads((folder / "manifest.json").read_text())["shards"][0]
    shard |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    edit_json(folder / "manifest.json", shards=[shard])


def make_embeddings(
    folder: Path, vectors: NDArray[np.float32], encoder: EncoderFacts | None = None
) -> Path:
    """Embeddings of any dimension, labelled `a` and `b` in turn."""
    toy = EncoderFacts.of(open_encoder("toy"))
    count, dim = vectors.shape
    source = SourceFacts(folder.name, "0" * 64, count)
    facts = Facts(encoder or toy, dim, Dtype.FLOAT32, Metric.EUCLIDEAN, source, count)
    writer = ShardWriter(folder, facts)
    names = [f"{folder.name}/{row}.png" for row in range(count)]
    writer.write(names, ["ab"[row % 2] for row in range(count)], names, vectors)
    writer.finish()
    return folder


# Damage to an embeddings folder: what is done to it, and what must be said of it.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_nan(columns: dict[str, Any]) -> None:
    columns["embedding"][17][1] = float("nan")


def put_infinity(columns: dict[str, Any]) -> None:
    columns["embedding"][17][1] = float("-inf")


def repeat_an_id(columns: dict[str, Any]) -> None:
    columns["id"][5] = columns["id"][31]


SHARD_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut": (lambda folder: cut(folder / PART), [PART, "damaged"]),
    "empty": (lambda folder: (folder / PART).write_bytes(b""), [PART, "damaged"]),
    "one bit": (lambda folder: flip_a_bit(folder / PART), [PART, "damaged", "sha256"]),
    "missing": (lambda folder: (folder / PART).unlink(), [PART, "missing"]),
    "NaN": (lambda folder: rewrite_shard(folder, put_nan), [PART, "NaN", "17"]),
    "infinity": (lambda folder: rewrite_shard(folder, put_infinity), [PART, "infinity", "17"]),
    "an id twice": (
        lambda folder: rewrite_shard(folder, repeat_an_id),
        ["'green/11.png' stands twice"],
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
        ["no manifest.json", "retr encode"],
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
def test_verify_finds_what_is_wrong(
    retr: Retr, gallery: Gallery, copied: Copied, damage: str
) -> None:
    folder = copied(gallery.embeddings)
    harm, said = DAMAGE[damage]
    harm(folder)
    outcome = retr.run("verify", folder, "--json")
    assert (outcome.code, outcome.err) == (2, "")
    assert outcome.document["ok"] is False
    for words in said[:-1] or said:
        assert words in " ".join(outcome.document["problems"])


def test_verify_says_all_that_is_wrong(retr: Retr, gallery: Gallery, copied: Copied) -> None:
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


def test_what_a_killed_run_leaves_behind_is_no_harm(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
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
def test_encoding_again_mends_a_damaged_shard(
    retr: Retr, gallery: Gallery, copied: Copied, damage: str
) -> None:
    folder = copied(gallery.embeddings)
    before = snapshot(folder)
    SHARD_DAMAGE[damage][0](folder)
    assert snapshot(folder) != before
    retr.json("encode", gallery.images, "--encoder", "toy", "--out", folder)
    assert snapshot(folder) == before


def test_no_value_in_a_manifest_leads_astray(gallery: Gallery, copied: Copied) -> None:
    """Whatever a field is changed to: the folder is refused, or read as it was."""
    folder = copied(gallery.embeddings)
    _, vectors = gallery.read()

    def read() -> None:
        embeddings = open_embeddings(folder)
        np.testing.assert_array_equal(embeddings.vectors(), vectors)
        assert len(embeddings) == 60, len(embeddings)

    check_changes(folder / "manifest.json", read)


@pytest.mark.parametrize("backend", ["exact", "hnsw", "ivf"])
def test_no_value_in_an_index_json_leads_astray(
    gallery: Gallery, copied: Copied, backend: str
) -> None:
    """Whatever a field is changed to: the index is refused, or searched as it was."""
    folder = copied(gallery.index(backend))
    _, vectors = gallery.read()

    def read() -> None:
        opened = open_index(folder)
        hits = opened.index.search(vectors[:5], 1)
        assert hits.rows[:, 0].tolist() == [0, 1, 2, 3, 4], hits.rows

    check_changes(folder / "index.json", read)


WRONG: list[Any] = [None, True, -1, 0, 10**30, 1.5, "x", "../x", [], ["x"], [[]], {}, {"x": 1}]


def check_changes(path: Path, read: Callable[[], None]) -> None:
    """Put wrong values in the place of every value of the JSON document, and leave it out."""
    whole = json.loads(path.read_text())
    astray: list[str] = []
    for place in places(whole):
        for wrong in [*WRONG, KeyError]:
            path.write_text(json.dumps(sealed(changed(whole, place, wrong))))
            try:
                read()
            except BadInput as error:
                assert len(str(error).splitlines()) == 1
            except Exception as error:
                astray.append(f"{'.'.join(map(str, place))} = {wrong!r}: {error!r}")
    assert not astray, "\n".join(astray)
    path.write_text(json.dumps(sealed(whole)))
    read()


def places(document: Any) -> list[tuple[str | int, ...]]:
    """The keys that lead to each value in the document, at whatever depth."""
    if isinstance(document, dict):
        entries: list[tuple[str | int, Any]] = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))
    else:
        return []
    found: list[tuple[str | int, ...]] = []
    for key, value in entries:
        found += [(key,), *((key, *rest) for rest in places(value))]
    return found


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of the document with the value in that place; KeyError: with nothing there."""
    copy = json.loads(json.dumps(document))
    target = copy
    for key in place[:-1]:
        target = target[key]
    if value is KeyError:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return copy


# Index folders.

INDEX_DAMAGE: Mapping[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut": (lambda folder: cut(native(folder)), ["damaged", "index anew"]),
    "one bit": (lambda folder: flip_a_bit(native(folder)), ["damaged", "sha256"]),
    "missing": (lambda folder: native(folder).unlink(), ["missing"]),
    "rows cut": (lambda folder: cut(folder / "rows.parquet"), ["rows.parquet", "damaged"]),
    "no rows": (lambda folder: (folder / "rows.parquet").unlink(), ["rows.parquet", "missing"]),
    "no JSON": (lambda folder: cut(folder / "index.json"), ["index.json"]),
    "no index.json": (lambda folder: (folder / "index.json").unlink(), ["no index", "retr index"]),
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
    """The file of the library's own."""
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


def test_an_index_of_another_encoder_is_not_searched(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    folder = copied(gallery.index())
    other = {"name": "siamese", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    message = retr.refused("search", gallery.image, "--index", folder, "--encoder", "toy")
    assert "siamese (ab12cd34)" in message
    assert "toy (" in message


def test_an_index_of_another_version_of_the_encoder_is_not_searched(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    folder = copied(gallery.index())
    other = {"name": "toy", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    message = retr.refused("search", gallery.image, "--index", folder)
    assert "toy (ab12cd34)" in message
    assert "encode and index anew" in message


def test_an_index_of_an_encoder_that_is_gone_says_which(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    folder = copied(gallery.index())
    other = {"name": "oracle", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    assert "unknown encoder 'oracle'" in retr.refused("search", gallery.image, "--index", folder)


# Things that do not belong together.


def test_sets_of_two_encoders_are_not_mixed(retr: Retr, gallery: Gallery) -> None:
    other = EncoderFacts("oracle", "ab12cd34" * 8)
    folder = make_embeddings(retr.cwd / "other", np.ones((4, 3), np.float32), other)
    for arguments in (
        ("eval", "--queries", folder, "--database", gallery.embeddings),
        ("eval", "--queries", gallery.embeddings, "--database", folder),
        ("index", folder, gallery.embeddings, "--out", "index"),
    ):
        message = retr.refused(*arguments)
        assert "oracle (ab12cd34)" in message
        assert "toy (" in message


def test_sets_of_two_dimensions_are_not_mixed(retr: Retr, gallery: Gallery) -> None:
    folder = make_embeddings(retr.cwd / "wide", np.ones((4, 5), np.float32))
    for sets in ((folder, gallery.embeddings), (gallery.embeddings, folder)):
        message = retr.refused("index", *sets, "--out", "index")
        assert "3" in message
        assert "5" in message


def test_queries_of_another_dimension_are_not_evaluated(retr: Retr) -> None:
    wide = make_embeddings(retr.cwd / "wide", np.ones((4, 5), np.float32))
    narrow = make_embeddings(retr.cwd / "narrow", np.ones((4, 3), np.float32))
    message = retr.refused("eval", "--queries", wide, "--database", narrow)
    assert "3" in message
    assert "5" in message


def test_an_index_of_other_embeddings_is_not_evaluated(retr: Retr, gallery: Gallery) -> None:
    other = make_embeddings(retr.cwd / "other", np.ones((60, 3), np.float32))
    message = retr.refused(
        "eval", "--queries", other, "--database", other, "--index", gallery.index()
    )
    assert "was not built from" in message


def test_labels_that_have_nothing_in_common_are_an_error(retr: Retr, gallery: Gallery) -> None:
    other = make_embeddings(retr.cwd / "other", np.ones((4, 3), np.float32))
    message = retr.refused("eval", "--queries", other, "--database", gallery.embeddings)
    assert "none of 4 queries" in message


def test_the_same_embeddings_twice_are_not_indexed(retr: Retr, gallery: Gallery) -> None:
    message = retr.refused("index", gallery.embeddings, gallery.embeddings, "--out", "index")
    assert "stands twice" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["index", "{exact}", "--out", "index"], "exact is no embeddings folder"),
        (["search", "{image}", "--index", "{embeddings}"], "embeddings is no index"),
        (["eval", "--queries", "{exact}", "--database", "{embeddings}"], "exact is no embeddings"),
        (["info", "{images}"], "images is neither embeddings"),
        (["verify", "{images}"], "images is neither embeddings"),
        (["verify", "{image}"], "7.png is neither embeddings"),
        (["info", "nowhere"], "nowhere is not there"),
        (["index", "nowhere"], "nowhere is no embeddings folder"),
        (["search", "{image}", "--index", "nowhere"], "nowhere is no index"),
    ],
)
def test_a_folder_of_the_wrong_kind_is_named(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    places = {
        "image": gallery.image,
        "images": gallery.images,
        "embeddings": gallery.embeddings,
        "exact": gallery.index(),
    }
    assert said in retr.refused(*(argument.format(**places) for argument in arguments))


# Output folders.


def outputs(gallery: Gallery) -> dict[str, list[str]]:
    return {
        "encode": ["encode", str(gallery.images), "--encoder", "toy"],
        "index": ["index", str(gallery.embeddings), "--backend", "exact"],
    }


@pytest.mark.parametrize("command", ["encode", "index"])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("full", "full holds something else (notes.txt"),
        ("file", "file is a file"),
        ("file/below", "file"),
        ("file/far/below", "file"),
        ("/proc/retr", "cannot write into /proc/retr"),
    ],
)
def test_an_output_folder_that_cannot_be_is_left_as_it_is(
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
        assert "holds something else" in message


def test_other_embeddings_are_not_overwritten(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.embeddings)
    message = retr.refused("encode", "digits", "--encoder", "toy", "--out", folder)
    assert "digits/train" in message
    message = retr.refused(*outputs(gallery)["encode"], "--dtype", "float16", "--out", folder)
    assert "as float32, not float16" in message


@pytest.mark.parametrize("command", ["encode", "index"])
def test_a_second_writer_is_turned_away(retr: Retr, gallery: Gallery, command: str) -> None:
    folder = retr.cwd / "made"
    folder.mkdir()
    with locked(folder):
        message = retr.refused(*outputs(gallery)[command], "--out", folder)
    assert "another process is writing into" in message
    assert retr.json(*outputs(gallery)[command], "--out", folder)["rows"] == 60


def test_an_index_that_fails_leaves_the_old_one(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    index, embeddings = copied(gallery.index("hnsw")), copied(gallery.embeddings)
    flip_a_bit(embeddings / PART)
    retr.refused("index", embeddings, "--out", index)
    retr.refused("index", gallery.embeddings, "--out", index, "--set", "m=1")
    assert retr.json("verify", index)["ok"]


def test_a_damaged_index_can_be_built_anew(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    for damage in ("cut", "no JSON", "newer"):
        folder = copied(gallery.index())
        INDEX_DAMAGE[damage][0](folder)
        assert retr.json(*outputs(gallery)["index"], "--out", folder)["rows"] == 60
        assert retr.json("verify", folder)["ok"]
        shutil.rmtree(folder)


def test_a_workspace_that_is_damaged_says_so(retr: Retr, gallery: Gallery) -> None:
    workspace = retr.cwd / "workspace"
    workspace.mkdir()
    (workspace / "latest.json").write_text("{")
    assert "latest.json" in retr.refused("search", gallery.image)
    (workspace / "latest.json").write_text('{"index": "/nowhere/at/all"}')
    assert "run 'retr index' first" in retr.refused("search", gallery.image)


def test_the_facts_of_a_run_are_compared_whole(gallery: Gallery, copied: Copied) -> None:
    """Each fact that differs keeps a run from going on with another's shards."""
    folder = copied(gallery.embeddings)
    facts = open_embeddings(folder).facts
    assert ShardWriter(folder, facts).manifest.complete
    for other in (
        replace(facts, dtype=Dtype.FLOAT16),
        replace(facts, shard_images=50),
        replace(facts, source=replace(facts.source, fingerprint="1" * 64)),
        replace(facts, encoder=replace(facts.encoder, fingerprint="1" * 64)),
        replace(facts, encoder=replace(facts.encoder, config={"mirror": True})),
    ):
        with pytest.raises(BadInput, match="holds other embeddings"):
            ShardWriter(folder, other)

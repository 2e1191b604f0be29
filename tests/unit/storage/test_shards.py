"""Shards and manifests that are not as they should be."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.contracts import Metric
from retrieval.errors import BadData, BadInput
from retrieval.inspection import verify
from retrieval.storage.files import sealed, sha256_of
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from retrieval.storage.sets.shards import shard_name, vectors_of

VECTORS = np.arange(12, dtype=np.float32).reshape(6, 2)


def facts(**changes: object) -> Facts:
    settings: dict[str, object] = {
        "encoder": EncoderFacts("one", "a" * 64),
        "dim": 2,
        "dtype": Dtype.FLOAT32,
        "metric": Metric.COSINE,
        "source": SourceFacts("six", "b" * 64, 6),
        "shard_images": 2,
    }
    return Facts(**(settings | changes))  # type: ignore[arg-type]


def write(folder: Path, shards: int = 3, what: Facts | None = None) -> ShardWriter:
    writer = ShardWriter(folder, what or facts())
    for number in range(shards):
        at = range(2 * number, 2 * number + 2)
        writer.write([f"id{i}" for i in at], ["x", None], [None, "p"], VECTORS[at.start : at.stop])
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set").finish()
    return tmp_path / "set"


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))


def test_columns_are_those_of_the_format(folder: Path) -> None:
    file = pq.ParquetFile(folder / shard_name(0))
    schema = file.schema_arrow
    assert schema.names == ["id", "label", "path", "embedding"]
    assert schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float32(), nullable=False), 2
    )
    assert not schema.field("embedding").nullable
    assert json.loads(schema.metadata[b"retr"]) == facts().to_json()
    column = file.metadata.row_group(0).column(3)
    assert column.path_in_schema.startswith("embedding.")
    assert not column.has_dictionary_page


def test_the_same_run_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "again").finish()
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_vectors_come_without_a_copy(folder: Path) -> None:
    table = pq.read_table(folder / shard_name(1))
    vectors = vectors_of(table)
    assert vectors.tolist() == VECTORS[2:4].tolist()
    address = table["embedding"].chunk(0).values.buffers()[1].address
    assert vectors.__array_interface__["data"][0] == address


def test_incomplete_set_is_refused_and_says_how_far_it_is(tmp_path: Path) -> None:
    write(tmp_path, shards=2)
    with pytest.raises(BadInput, match=r"not complete: 4 of 6 images .* to continue"):
        open_embeddings(tmp_path)


def test_damaged_shard_is_found_and_written_anew(folder: Path) -> None:
    path = folder / shard_name(1)
    whole = {p.name: sha256_of(p) for p in folder.glob("*.parquet")}
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadData, match=r"part-00001.parquet is damaged: checksum mismatch"):
        open_embeddings(folder).read()
    writer = ShardWriter(folder, facts())
    assert (writer.position, writer.manifest.complete) == (2, False)
    for number in (1, 2):
        at = range(2 * number, 2 * number + 2)
        writer.write([f"id{i}" for i in at], ["x", None], [None, "p"], VECTORS[at.start : at.stop])
    writer.finish()
    assert {p.name: sha256_of(p) for p in folder.glob("*.parquet")} == whole


@pytest.mark.parametrize("endless", ["pipe", "device"])
def test_endless_file_is_not_read(folder: Path, endless: str) -> None:
    part = folder / "part-00001.parquet"
    part.unlink()
    if endless == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to("/dev/zero")
    with pytest.raises(BadData, match=r"part-00001.parquet is not a file; run the same"):
        open_embeddings(folder).read()
    assert any("is not a file" in problem for problem in verify(folder).problems)


def test_missing_shard(folder: Path) -> None:
    (folder / shard_name(2)).unlink()
    with pytest.raises(BadData, match=r"part-00002.parquet is missing"):
        open_embeddings(folder).read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 5}, r"version 5 of retr-embeddings, this retr reads up to 4; use a newer"),
        ({"version": "one"}, "has no version"),
        ({"format": "other"}, "not of the format retr-embeddings"),
        ({"dim": -3}, "field 'dim' must be 1 or more, not -3; encode again"),
        ({"dim": "two"}, "field 'dim' must be a whole number, not 'two'; encode again"),
        ({"dtype": "float8"}, "float8"),
        ({"encoder": {}}, "field 'encoder.name' is missing"),
        ({"shards": [{"file": "x"}]}, "field 'shards.0.rows' is missing"),
        ({"dim": 3}, "has other columns than its manifest says"),
    ],
)
def test_manifests_that_are_not_ours(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    change_manifest(folder, **changes)
    with pytest.raises(BadData, match=message):
        open_embeddings(folder).read()


def test_a_manifest_cannot_point_outside_its_folder(folder: Path) -> None:
    shard = json.loads((folder / "manifest.json").read_text())["shards"][0]
    change_manifest(folder, shards=[shard | {"file": "../part-00000.parquet"}])
    with pytest.raises(BadData, match="outside its folder"):
        open_embeddings(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "null"])
def test_manifest_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BadData, match=r"manifest.json"):
        open_embeddings(folder)


def test_row_count_of_the_manifest_is_checked(folder: Path) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    change_manifest(folder, shards=[shards[0] | {"rows": 3}, *shards[1:]])
    with pytest.raises(BadData, match="has 2 rows, the manifest says 3"):
        open_embeddings(folder).read()


def rewrite(folder: Path, table: pa.Table) -> None:
    """Put the table in the place of the first shard, with a manifest that knows its hash."""
    path = folder / shard_name(0)
    pq.write_table(table, path)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    new = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    change_manifest(folder, shards=[shards[0] | new, *shards[1:]])


def test_nan_is_found_with_its_row(folder: Path) -> None:
    table = pq.read_table(folder / shard_name(0))
    flat = pa.array(np.array([0, 1, np.nan, 3], np.float32))
    column = pa.FixedSizeListArray.from_arrays(flat, type=table.schema.field("embedding").type)
    rewrite(folder, table.set_column(3, table.schema.field(3), column))
    with pytest.raises(BadData, match=r"NaN or infinity in row 1 \(id1\)"):
        open_embeddings(folder).read()


def test_duplicate_ids_are_found(folder: Path) -> None:
    table = pq.read_table(folder / shard_name(0))
    ids = pa.array(["id0", "id5"])
    rewrite(folder, table.set_column(0, table.schema.field(0), ids))
    with pytest.raises(BadData, match="duplicate id 'id5'"):
        open_embeddings(folder).read()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (facts(encoder=EncoderFacts("two", "c" * 64)), "of encoder one, not two"),
        (facts(encoder=EncoderFacts("one", "c" * 64)), "another version of encoder one"),
        (facts(source=SourceFacts("seven", "b" * 64, 6)), "of six, not seven"),
        (facts(source=SourceFacts("six", "d" * 64, 6)), "of six as it was before it changed"),
        (facts(dtype=Dtype.FLOAT16), "as float32, not float16"),
        (facts(shard_images=3), "in shards of 2 images, not 3"),
    ],
)
def test_another_run_does_not_write_here(folder: Path, other: Facts, message: str) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(BadInput, match=message):
        ShardWriter(folder, other)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    (tmp_path / "thesis.bak").write_text("dear")
    with pytest.raises(BadInput, match=r"holds other files \(thesis.bak and 1 more\)"):
        ShardWriter(tmp_path, facts())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.bak", "thesis.txt"]


def test_what_a_killed_run_left_behind_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet.partial").write_bytes(b"half")
    (tmp_path / "part-00000.parquet").write_bytes(b"whole, but not in a manifest")
    write(tmp_path).finish()
    assert len(open_embeddings(tmp_path).vectors()) == 6


@pytest.mark.parametrize(
    ("value", "dtype", "remedy"),
    [
        (np.nan, Dtype.FLOAT32, "correct the encoder"),
        (1e6, Dtype.FLOAT16, "use --dtype float32"),
    ],
)
def test_numbers_that_are_not_finite_are_not_written(
    tmp_path: Path, value: float, dtype: Dtype, remedy: str
) -> None:
    writer = ShardWriter(tmp_path, facts(dtype=dtype))
    vectors = np.array([[0, 1], [value, 0]], np.float32)
    with pytest.raises(BadInput, match=f"embedding of b is not finite as {dtype}; {remedy}"):
        writer.write(["a", "b"], [None, None], [None, None], vectors)
    assert not (tmp_path / shard_name(0)).exists()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = write(tmp_path, shards=1)

    def full(path: Path, content: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        writer.write(["c", "d"], [None, None], [None, None], VECTORS[:2])
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["manifest.json", shard_name(0)]
    assert ShardWriter(tmp_path, facts()).position == 2

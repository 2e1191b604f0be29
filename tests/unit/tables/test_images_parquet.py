"""Parquet and Arrow files as sources: splits, ids, empty files, damage, memory."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import decode, open_source, read_image
from tests.tables import NAMES, STRUCT, notes, png, reason, save, shade, write


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, parts in {"train": 11, "test": 1}.items():
        for part in range(parts):
            labels = pa.array([i % 2 for i in range(30)])
            file = root / f"{split}-{part}-of-{parts}.parquet"
            write(file, 30 * part, 30, labels, metadata=NAMES)
    return root


def test_splits_are_found_in_a_folder(data_set: Path) -> None:
    train = open_source(str(data_set))
    test = open_source(str(data_set), split="test")
    assert (len(train), len(test)) == (330, 30)
    assert (train.name, test.name) == (f"{data_set}/train", f"{data_set}/test")
    assert train.fingerprint != test.fingerprint
    items = list(train.items())
    assert [item.id for item in items] == [f"train/{i:05}" for i in range(330)]
    # parts in natural order: 2 before 10
    assert [shade(item.content) for item in items] == list(range(330))
    assert [item.label for item in items] == ["cat", "dog"] * 165
    assert items[315].path == f"{data_set}/train-10-of-11.parquet#15"


def test_an_unknown_split_lists_those_there_are(data_set: Path) -> None:
    with pytest.raises(UnknownName, match=r"'validation'; there are: test, train"):
        open_source(str(data_set), split="validation")


@pytest.mark.parametrize("start", [0, 1, 9, 10, 29, 30, 299, 300, 315, 329, 330, 400])
def test_items_start_anywhere(data_set: Path, start: int) -> None:
    source = open_source(str(data_set))
    assert [shade(item.content) for item in source.items(start)] == list(range(start, 330))


def test_images_can_be_read_again(data_set: Path) -> None:
    for item in list(open_source(str(data_set)).items())[::17]:
        assert np.array_equal(
            np.asarray(read_image(item.path)), np.asarray(decode(item.content, "x"))
        )
    with pytest.raises(BadImage, match="no such row"):
        read_image(f"{data_set}/test-0-of-1.parquet#30")
    with pytest.raises(BadImage, match="no such file"):
        read_image(f"{data_set}/none.parquet#0")


def test_parts_without_splits_are_named_by_file_and_row(tmp_path: Path) -> None:
    write(tmp_path / "b" / "part-10.parquet", 10, 3, pa.array(["x", None, "y"]))
    write(tmp_path / "b" / "part-9.parquet", 0, 2, column="image")
    for spec in (tmp_path, tmp_path / "**/*.parquet"):
        items = list(open_source(str(spec)).items())
        assert [shade(item.content) for item in items] == [0, 1, 10, 11, 12]
        assert [item.label for item in items] == [None, None, "x", None, "y"]
    (note,) = notes(str(tmp_path))
    assert "'label' in b/part-10.parquet, none in b/part-9" in note
    names = [item.id for item in items]
    assert names[1:3] == ["b/part-9.parquet#1", "b/part-10.parquet#0"]
    with pytest.raises(BadSource, match="no split 'train'"):
        open_source(str(tmp_path), split="train")


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    file = tmp_path / "pictures[1].parquet"
    write(file, 5, 2)
    source = open_source(str(file))
    assert source.name == str(file)
    assert [item.id for item in source.items()] == [
        "pictures[1].parquet#0",
        "pictures[1].parquet#1",
    ]
    assert [item.path for item in source.items()] == [f"{file}#0", f"{file}#1"]


def test_images_go_before_parquet(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", 0, 3)
    (tmp_path / "a.png").write_bytes(png(7))
    assert [item.id for item in open_source(str(tmp_path)).items()] == ["a.png"]
    (note,) = notes(str(tmp_path))
    assert "holds image and .parquet files: the image files are taken" in note
    assert f"'{tmp_path}/**/*.parquet'" in note
    assert notes(f"{tmp_path}/**/*.parquet") == notes(f"{tmp_path}/*.png") == []
    assert len(open_source(f"{tmp_path}/**/*.parquet")) == 3


def test_a_data_set_goes_before_images_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", 0, 3)
    (tmp_path / "a.png").write_bytes(png(7))
    assert len(open_source(str(tmp_path))) == 3
    (note,) = notes(str(tmp_path))
    assert f"the data set is taken; for the images name '{tmp_path}/**'" in note
    assert [x.id for x in open_source(f"{tmp_path}/**").items()] == ["a.png"]


def test_the_fingerprint_of_a_data_set_survives_a_copy(data_set: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data_set, tmp_path / "copy", copy_function=shutil.copyfile)
    one, two = open_source(str(data_set)), open_source(str(copy))
    assert one.fingerprint == two.fingerprint
    assert one.name != two.name
    part = tmp_path / "part.parquet"
    write(part, 0, 3)
    before = open_source(str(part)).fingerprint
    os.utime(part, ns=(1, 1))
    assert open_source(str(part)).fingerprint != before


@pytest.mark.parametrize(
    ("labels", "metadata", "expected"),
    [
        (pa.array([0, 1, None, -1]), NAMES, ["cat", "dog", None, None]),
        (pa.array([0, 1, None, -1]), None, ["0", "1", None, None]),
        (pa.array([7, 8, 9, 10], pa.uint8()), {"info": {}}, ["7", "8", "9", "10"]),
        (pa.array(["a", "b", None, ""]), NAMES, ["a", "b", None, ""]),
        (None, NAMES, [None] * 4),
    ],
)
def test_labels(
    tmp_path: Path, labels: pa.Array | None, metadata: object, expected: list[str | None]
) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 4, labels, metadata=metadata)
    assert [item.label for item in open_source(str(file)).items()] == expected


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0, 2, pa.array([0, 2]), metadata=NAMES)
    with pytest.raises(BadSource, match=r"label 2 has no name \(2 names\); "):
        list(open_source(str(tmp_path)).items())


def test_foreign_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0, 2, metadata=["no", "object"])
    with pytest.raises(BadSource, match=r"metadata 'huggingface' of .* is not that of a data set"):
        open_source(str(tmp_path))


def test_images_given_by_paths_are_read_from_the_folder_of_the_table(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(9))
    (home / "below" / "a b.png").write_bytes(png(5))
    (home / "link.png").symlink_to(outside)
    (home / "ring.png").symlink_to(home / "ring.png")
    good = ["below/a b.png", "below/../below/a b.png", str(home / "below" / "a b.png")]
    bad = {
        "../outside.png": "is outside the folder of the table",
        str(outside): "is outside the folder of the table",
        "link.png": "is outside the folder of the table",
        "ring.png": "folder of the table",
        "below": "no such file in the folder",
        "gone.png": "the row has no bytes but the path 'gone.png': no such file",
        "x" * 5000: "folder of the table",
        "a\0b.png": "is outside the folder of the table",
        "https://example.com/a.png": "a URL; download",
        "file:///etc/passwd": "a URL; download",
    }
    paths = [*good, *bad]
    structs = pa.array([{"bytes": None, "path": path} for path in paths], STRUCT)
    for number, column in enumerate((structs, pa.array(paths))):
        file = home / f"{number}.parquet"
        pq.write_table(pa.table({"image": column}), file)
        items = [*open_source(str(file)).items()]
        assert [shade(item.content) for item in items[:3]] == [5, 5, 5]
        assert np.asarray(read_image(items[1].path))[0, 0, 0] == 5
        for item, expected in zip(items[3:], bad.values(), strict=True):
            assert expected in reason(item.content)
            with pytest.raises(BadImage):
                read_image(item.path)


@pytest.mark.parametrize(
    "counts", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (0, 0, 2), (1, 0, 0), (0, 4, 0)]
)
@pytest.mark.parametrize("name", ["train-{}.parquet", "part-{}.parquet"])
@pytest.mark.parametrize("limit", [None, 2])
def test_files_without_rows_are_harmless(
    tmp_path: Path, counts: tuple[int, ...], name: str, limit: int | None
) -> None:
    for number, count in enumerate(counts):
        write(
            tmp_path / name.format(number),
            sum(counts[:number]),
            count,
            pa.array(["x"] * count, pa.string()),
        )
    total = sum(counts) if limit is None else min(limit, sum(counts))
    source = open_source(str(tmp_path), limit=limit)
    assert len(source) == total
    for start in range(total + 2):
        items = [*source.items(start)]
        assert [shade(item.content) for item in items] == [*range(start, total)]
    for item in source.items():
        assert shade(item.content) == np.asarray(read_image(item.path))[0, 0, 0]
    empty = tmp_path / name.format(counts.index(0))
    with pytest.raises(BadImage, match="no such row"):
        read_image(f"{empty}#0")


def test_a_file_of_an_empty_frame_is_harmless(tmp_path: Path) -> None:
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.null())}), tmp_path / "b.parquet")
    write(tmp_path / "c.parquet", 0, 2)
    pq.write_table(pa.table({}), tmp_path / "d.parquet")
    write(tmp_path / "e.parquet", 2, 1)
    assert [shade(x.content) for x in open_source(str(tmp_path)).items()] == [0, 1, 2]


@pytest.mark.parametrize("counts", [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 2), (2, 0, 0, 1)])
def test_row_groups_without_rows_are_harmless(tmp_path: Path, counts: tuple[int, ...]) -> None:
    table = pa.table({"image": [png(i) for i in range(sum(counts))]})
    for suffix in ("parquet", "arrow"):
        file = tmp_path / f"a.{suffix}"
        parts = [table.slice(sum(counts[:i]), count) for i, count in enumerate(counts)]
        if suffix == "parquet":
            with pq.ParquetWriter(file, table.schema) as writer:
                for part in parts:
                    writer.write_table(part)
            groups = pq.ParquetFile(file).metadata
            assert groups.num_row_groups >= len([c for c in counts if c])
        else:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                for part in parts:
                    for batch in part.combine_chunks().to_batches() or [empty_batch(table.schema)]:
                        out.write_batch(batch)
        source = open_source(str(file))
        for start in range(sum(counts) + 1):
            assert [shade(x.content) for x in source.items(start)] == [*range(start, sum(counts))]
        for row in range(sum(counts)):
            assert np.asarray(read_image(f"{file}#{row}"))[0, 0, 0] == row
        with pytest.raises(BadImage, match="no such row"):
            read_image(f"{file}#{sum(counts)}")


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema)


@pytest.mark.parametrize("name", ["train-0.parquet", "a.parquet", "a.arrow"])
def test_a_source_without_any_row_is_refused(tmp_path: Path, name: str) -> None:
    save(pa.table({"image": pa.array([], STRUCT)}), tmp_path / name)
    for spec in (tmp_path, tmp_path / name, tmp_path / f"*{Path(name).suffix}"):
        with pytest.raises(BadSource, match=r"no images in .*: its files have no rows"):
            open_source(str(spec))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([[png(1)], [png(2)]], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadSource, match="two columns 'image'"):
        open_source(str(tmp_path))


def test_the_fingerprints_of_known_columns_have_not_changed(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", 0, 1, pa.array(["x"]))
    facts = ["parquet", "train", ("train-0.parquet", (tmp_path / "train-0.parquet").stat().st_size)]
    expected = hashlib.sha256("".join(f"{fact!a}\n" for fact in facts).encode()).hexdigest()
    assert open_source(str(tmp_path)).fingerprint == expected


def test_non_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(BadSource, match=r"cannot read .*a\.parquet as Parquet: "):
        open_source(str(tmp_path))
    with pytest.raises(BadImage, match=r"cannot read image .*#0: cannot read .* as Parquet"):
        read_image(f"{tmp_path}/a.parquet#0")


def test_the_first_item_comes_before_the_last_row_group_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 600, row_group_size=300)
    group = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    at = group.dictionary_page_offset or group.data_page_offset
    content[at : at + group.total_compressed_size] = bytes(group.total_compressed_size)
    file.write_bytes(content)
    items = open_source(str(file)).items()
    assert [shade(next(items).content) for _ in range(256)] == list(range(256))
    with pytest.raises(BadSource, match="as Parquet"):
        list(items)


def test_starting_late_does_not_read_what_comes_before(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, 0, 600, row_group_size=300)
    group = pq.ParquetFile(file).metadata.row_group(0).column(0)
    content = bytearray(file.read_bytes())
    at = group.dictionary_page_offset or group.data_page_offset
    content[at : at + group.total_compressed_size] = bytes(group.total_compressed_size)
    file.write_bytes(content)
    source = open_source(str(file))
    assert [shade(item.content) for item in source.items(300)] == list(range(300, 600))
    assert read_image(f"{file}#599").size == (3, 2)
    with pytest.raises(BadSource):
        next(source.items(299))


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    noise = np.random.default_rng(0).bytes(20_000)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": i.to_bytes(4, "big") + noise, "path": None} for i in range(4_000)]
    table = pa.table({"image": pa.array(rows, kind)})
    pq.write_table(table, file, row_group_size=4_000, compression="none", use_dictionary=False)
    del rows, table
    held = pa.total_allocated_bytes()
    most = 0
    for item in open_source(str(file)).items():
        assert isinstance(item.content, bytes)
        most = max(most, pa.total_allocated_bytes() - held)
    assert file.stat().st_size > 80_000_000
    assert most < 30_000_000


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_run_that_was_stopped_goes_on_among_files_without_rows(tmp_path: Path, stop: int) -> None:
    for number, count in enumerate((0, 3, 0, 4, 0)):
        write(tmp_path / "in" / f"{number}.parquet", 10 * number, count)
    source = open_source(str(tmp_path / "in"))
    whole = encode_source(source, Toy(), tmp_path / "whole", shard_images=2)

    def halt(done: int, total: int) -> None:
        if done >= 2 * stop - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_source(source, Toy(), tmp_path / "out", shard_images=2, progress=halt)
    assert encode_source(source, Toy(), tmp_path / "out", shard_images=2) == whole

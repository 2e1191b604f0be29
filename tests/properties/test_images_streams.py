"""Properties of all kinds of source, and of any bytes read as an image."""

import io
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage
from retrieval.images import Item, decode, frame, open_source
from tests.examples import examples

COUNTS = st.sampled_from([1, 2, 5, 255, 256, 257, 600])  # around one chunk of 256, and three chunks


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1), (shade % 256, shade // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


PNGS = [png(i) for i in range(600)]


def folder(root: Path, count: int) -> str:
    for i in range(count):
        file = root / ("" if i % 3 == 0 else f"{i % 7}") / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(PNGS[i])
    return str(root)


def parquet(root: Path, count: int) -> str:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for part, first in enumerate(range(0, count, 250)):
        rows = [
            {"bytes": content, "path": None} for content in PNGS[first : min(first + 250, count)]
        ]
        table = pa.table({"img": pa.array(rows, kind), "label": [str(i) for i in range(len(rows))]})
        pq.write_table(table, root / f"train-{part}.parquet", row_group_size=100)
    return str(root)


def empty_between(root: Path, count: int) -> str:
    """Parquet files of two row groups, each after one without rows."""
    for part, first in enumerate(range(0, count, 200)):
        table = pa.table({"image": PNGS[first : min(first + 200, count)]})
        pq.write_table(table.slice(0, 0), root / f"test-{2 * part}.parquet")
        pq.write_table(table, root / f"test-{2 * part + 1}.parquet", row_group_size=100)
    return f"{root}/*.parquet"


def arrow(root: Path, count: int) -> str:
    table = pa.table({"jpg": PNGS[:count], "labels": [i % 7 for i in range(count)]})
    with pa.ipc.new_stream(str(root / "a.arrow"), table.schema) as out:
        out.write_table(table.slice(0, 1))
        out.write_batch(pa.RecordBatch.from_pylist([], table.schema))
        out.write_table(table.slice(1), max_chunksize=300)
    return str(root)


def tar(root: Path, count: int) -> str:
    for part, first in enumerate(range(0, count, 250)):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for i in range(first, min(first + 250, count)):
                for ending, content in (("cls", b"%d" % (i % 7)), ("png", PNGS[i])):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return str(root)


def idx(root: Path, count: int) -> str:
    pixels = (np.arange(count * 4) % 251).astype(np.uint8)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 2, 2)
    (root / "train-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    header = bytes([0, 0, 8, 1]) + struct.pack(">I", count)
    (root / "train-labels-idx1-ubyte").write_bytes(header + bytes(i % 10 for i in range(count)))
    return str(root)


def binary_cifar(root: Path, count: int) -> str:
    for batch in range(1, 6):
        n = min(count, 20)
        records = [bytes([i % 10, batch]) + bytes([i]) * 3071 for i in range(n)]
        (root / f"data_batch_{batch}.bin").write_bytes(b"".join(records))
    (root / "test_batch.bin").touch()
    return str(root)


def seen(item: Item) -> tuple[str, str | None, str, object]:
    content = item.content
    plain = content.tobytes() if isinstance(content, np.ndarray) else content
    return item.id, item.label, item.path, plain


@settings(max_examples=examples(40), deadline=None)
@given(
    make=st.sampled_from([folder, parquet, empty_between, arrow, tar, idx, binary_cifar]),
    count=COUNTS,
    start=st.integers(0, 620),
    limit=st.none() | st.integers(1, 620),
)
def test_start_and_limit_slice_the_items(
    make: Callable[[Path, int], str], count: int, start: int, limit: int | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        spec = make(Path(root), count)
        whole = [seen(item) for item in open_source(spec).items()]
        source = open_source(spec, limit=limit)
        assert [seen(item) for item in source.items()] == whole[:limit]
        assert [seen(item) for item in source.items(start)] == whole[:limit][start:]
        assert len(source) == len(whole[:limit])
        assert len({ident for ident, *_ in whole}) == len(whole)
        assert source.fingerprint == open_source(spec, limit=limit).fingerprint


NAME = st.text("ab1029.é ", min_size=1, max_size=5).filter(
    lambda name: not name.startswith(".") and name.strip() == name and not name.endswith(".png")
)


def key(path: str) -> list[tuple[list[tuple[int, object]], str]]:
    """Return a key of natural order: runs of digits as numbers, before runs of other characters.

    Names with equal numbers, such as 09 and 9, are ordered by their text.
    """
    keys = []
    for name in path.split("/"):
        runs: list[tuple[int, object]] = []
        for character in name:
            kind = 0 if character in "0123456789" else 1
            if runs and runs[-1][0] == kind:
                runs[-1] = (kind, str(runs[-1][1]) + character)
            else:
                runs.append((kind, character))
        keys.append(([(kind, int(str(run)) if kind == 0 else run) for kind, run in runs], name))
    return keys


@settings(max_examples=examples(40), deadline=None)
@given(st.sets(st.lists(NAME, min_size=1, max_size=3).map(tuple), min_size=1, max_size=8))
@example({("09", "1"), ("9", "0")})
def test_a_folder_lists_all_paths_in_natural_order(paths: set[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        expected = set()
        for parts in paths:
            file = Path(root, *parts[:-1], f"{parts[-1]}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            expected.add("/".join((*parts[:-1], f"{parts[-1]}.png")))
        found = [item.id for item in open_source(root).items()]
        assert sorted(found) == sorted(expected)
        assert [key(path) for path in found] == sorted(key(path) for path in found)
        assert len(open_source(root)) == len(expected)


def valid_images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    made = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {} if kind in ("BMP", "GIF") else {"exif": exif}
        Image.fromarray(pixels).save(stream, kind, **options)
        made.append(stream.getvalue())
    return made


VALID = valid_images()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 5))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


@settings(max_examples=examples(400), deadline=None)
@given(damaged() | st.binary(max_size=60))
def test_any_bytes_are_an_rgb_image_or_raise_bad_image(content: bytes) -> None:
    try:
        image = decode(content, "some bytes", Framing(4))
    except BadImage as error:
        assert error.path == "some bytes"
        assert "\n" not in error.reason
    else:
        assert image.mode == "RGB"
        assert np.asarray(image).shape == (image.height, image.width, 3)


@settings(max_examples=examples(100), deadline=None)
@given(
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    side=st.integers(1, 40),
    crop=st.floats(0.3, 1.0),
    shade=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_frames_are_square_and_keep_a_plain_color(
    width: int, height: int, side: int, crop: float, shade: tuple[int, int, int]
) -> None:
    framed: Images = frame(Image.new("RGB", (width, height), shade), Framing(side, crop))
    assert framed.dtype == np.uint8
    assert np.array_equal(framed, np.full((side, side, 3), shade))

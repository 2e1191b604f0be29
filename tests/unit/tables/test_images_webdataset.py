"""Tar archives of samples, as WebDataset writes them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import Columns, decode, open_source, read_image
from retrieval.images.tables.webdataset import Member, Sample

Members = Sequence[tuple[str, bytes]]


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar(file: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def samples(first: int, count: int) -> list[tuple[str, bytes]]:
    """Label, image and caption of each; the label stands before its image."""
    return [
        member
        for i in range(first, first + count)
        for member in (
            (f"{i:04}.cls", str(i % 3).encode()),
            (f"{i:04}.png", png(i)),
            (f"{i:04}.txt", b"a caption"),
        )
    ]


def shade(content: object) -> int:
    return int(np.asarray(decode(content, "x"))[0, 0, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [[5], [3, 4], [0, 3, 2], [3, 0, 2], [3, 0]])
def test_shards_are_read_in_their_order(tmp_path: Path, counts: list[int]) -> None:
    for number, count in enumerate(counts):
        tar(tmp_path / f"train-{number:06}.tar", samples(sum(counts[:number]), count))
    source = open_source(str(tmp_path))
    items, total = [*source.items()], sum(counts)
    assert len(source) == total
    assert [shade(item.content) for item in items] == [*range(total)]
    assert [item.label for item in items] == [str(i % 3) for i in range(total)]
    assert items[2].id == next(
        f"train-{number:06}.tar#{2 - sum(counts[:number])}"
        for number, count in enumerate(counts)
        if sum(counts[: number + 1]) > 2
    )
    for start in range(total + 2):
        assert [item.id for item in source.items(start)] == [item.id for item in items[start:]]
    for number, item in enumerate(items):
        assert np.asarray(read_image(item.path))[0, 0, 0] == number
    assert len(open_source(f"{tmp_path}/*.tar", limit=2)) == 2
    assert encode_source(source, Toy(), tmp_path / "out").rows == total


def test_a_single_shard_is_a_source_and_rows_end(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", samples(0, 2))
    assert [item.path for item in open_source(str(file)).items()] == [f"{file}#0", f"{file}#1"]
    with pytest.raises(BadImage, match="no such row"):
        read_image(f"{file}#2")
    with pytest.raises(BadImage, match="no such file"):
        read_image(f"{tmp_path}/gone.tar#0")


@pytest.mark.parametrize(
    ("members", "columns", "expected"),
    [
        ([("a.jpg", png(1)), ("a.json", b'{"label": "cat"}')], Columns(), "cat"),
        ([("a.jpg", png(1)), ("a.json", b'{"label": 3}')], Columns(), "3"),
        ([("a.jpg", png(1)), ("a.json", b'{"label": null}')], Columns(), None),
        ([("a.jpg", png(1)), ("a.json", b'{"kind": "x"}')], Columns(), None),
        ([("a.jpg", png(1)), ("a.json", b'{"kind": "x"}')], Columns(label="kind"), "x"),
        ([("a.jpg", png(1)), ("a.json", b"[1]")], Columns(), None),
        ([("a.jpg", png(1)), ("a.cls", b" 5\n"), ("a.json", b"no")], Columns(), "5"),
        ([("a.jpg", png(1)), ("a.cls", b"-1")], Columns(), None),
        ([("a.jpg", png(1)), ("a.txt", b"a dog"), ("a.cls", b"1")], Columns(label="txt"), "a dog"),
        ([("a.jpg", png(1)), ("a.cls", b"1")], Columns(label=""), None),
        ([("d.v1/a.JPG", png(1)), ("d.v1/a.CLS", b"1")], Columns(), "1"),
        ([("./a.jpg", png(1)), ("./a.cls", b"1"), ("./._a.jpg", b"x")], Columns(), "1"),
    ],
)
def test_labels(tmp_path: Path, members: Members, columns: Columns, expected: str | None) -> None:
    (item,) = open_source(str(tar(tmp_path / "a.tar", members)), columns=columns).items()
    assert (item.label, shade(item.content)) == (expected, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"label": ["a", "b"]}', "label of sample a of .* holds several values"),
        (b'{"label"', "json of sample a of .* is damaged"),
        (b"[" * 100_000, "json of sample a of .* is damaged"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tar(tmp_path / "a.tar", [("a.jpg", png(1)), ("a.json", content)])
    with pytest.raises(BadSource, match=message):
        list(open_source(str(file)).items())


def test_a_choice_among_images_is_said_and_changed(tmp_path: Path) -> None:
    members = [("a.seg.png", png(1)), ("a.png", png(2)), ("a.jpg", png(3)), ("b.seg.png", png(4))]
    file = tar(tmp_path / "a.tar", members)
    said: list[str] = []
    plain = open_source(str(file), note=said.append)
    (note,) = said
    assert "several images: jpg is taken, not png, seg.png" in note
    assert [shade(item.content) for item in plain.items()] == [3, 4]
    chosen = open_source(str(file), columns=Columns("seg.PNG"))
    items = [*chosen.items()]
    assert [shade(item.content) for item in items] == [1, 4]
    assert [np.asarray(read_image(item.path))[0, 0, 0] for item in items] == [1, 4]
    assert chosen.fingerprint != plain.fingerprint
    for columns in (Columns("gif"), Columns(label="gone")):
        with pytest.raises(UnknownName, match=r"there are: jpg, png, seg\.png"):
            open_source(str(file), columns=columns)


def test_samples_without_an_image_are_skipped_with_a_reason(tmp_path: Path) -> None:
    members = [*samples(0, 1), ("x.json", b"{}"), ("x.txt", b""), *samples(1, 1)]
    file = tar(tmp_path / "a.tar", members)
    items = [*open_source(str(file)).items()]
    assert [item.label for item in items] == ["0", None, "1"]
    with pytest.raises(BadImage, match="no image in this sample: it has json, txt"):
        decode(items[1].content, "x")
    with pytest.raises(BadImage, match="no image in this sample"):
        read_image(items[1].path)


def test_links_and_devices_in_an_archive_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo("b.png")
            member.type, member.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(member)
        member = tarfile.TarInfo("../../a.png")
        member.size = len(png(1))
        archive.addfile(member, io.BytesIO(png(1)))
    (item,) = open_source(str(file)).items()
    assert shade(item.content) == 1


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", samples(0, 5))
    whole = file.read_bytes()
    header = whole.index(b"0003.png")
    damaged = {
        "cut in a member": whole[: header + 600],
        "cut in a header": whole[: header + 100],
        "a damaged header": whole[:header] + bytes([255] * 512) + whole[header + 512 :],
        "no archive": b"no archive" * 1000,
        "empty": b"",
    }
    for name, content in damaged.items():
        file.write_bytes(content)
        with pytest.raises(BadSource, match="cannot read the archive"):
            list(open_source(str(tmp_path)).items())
        with pytest.raises(BadImage, match="cannot read the archive"):
            read_image(f"{file}#4")
        assert name


@pytest.mark.parametrize("size", [-512, -(1 << 40), 1 << 62])
def test_an_archive_that_would_be_read_for_ever_is_refused(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = size
    content = b"x" * 512
    first = tarfile.TarInfo("0.png")
    first.size = len(content)
    headers = [each.tobuf(tarfile.GNU_FORMAT) for each in (first, member)]
    (tmp_path / "a.tar").write_bytes(headers[0] + content + headers[1] + bytes(2048))
    with pytest.raises(BadSource, match="cannot read the archive"):
        open_source(str(tmp_path / "a.tar"))


def test_a_compressed_archive_of_images_is_refused_by_name(tmp_path: Path) -> None:
    for name, mode in {"a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.xz": "w:xz"}.items():
        folder = tmp_path / name[1:]
        folder.mkdir()
        file = tar(folder / name, samples(0, 2), mode)
        for spec in (file, folder, f"{folder}/*"):
            with pytest.raises(BadSource, match=r"a compressed archive; decompress it to a \.tar"):
                open_source(str(spec))


def test_an_archive_without_samples_is_refused(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", [])
    with pytest.raises(BadSource, match="no images in"):
        open_source(str(file))


def test_the_fingerprint_tells_labels_apart(tmp_path: Path) -> None:
    members = [("a.jpg", png(1)), ("a.json", json.dumps({"label": "x", "kind": "y"}).encode())]
    file = str(tar(tmp_path / "a.tar", members))
    prints = {open_source(file, columns=Columns(label=c)).fingerprint for c in (None, "kind", "")}
    assert len(prints) == 3


def test_installed_packages_do_not_change_which_image_is_taken() -> None:
    members = {ending: Member(0, 1) for ending in ("seg.png", "mp4", "jxl", "dng", "jpg", "cls")}
    images = Sample("1", members).images()
    assert images[:2] == ["jpg", "seg.png"]
    assert {*images[2:]} <= {"mp4", "jxl", "dng"}

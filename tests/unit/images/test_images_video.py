"""Videos: the first frame that can be decoded, upright."""

import io
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from encoders.toy import Toy
from retrieval import open_embeddings
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadImage
from retrieval.images import decode, frame, open_source
from retrieval.images.pixels.megapixels import MEGAPIXELS_VARIABLE
from tests.damaged import refused

av = pytest.importorskip("av")

CONTAINERS = {
    "mp4": "mp4",
    "m4v": "mp4",
    "mov": "mov",
    "avi": "avi",
    "mkv": "matroska",
    "webm": "matroska",
}


def scene(width: int, height: int, color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture in one color whose upper left quarter is green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = color
    pixels[: height // 2, : width // 2] = (20, 220, 20)
    return pixels


def video(kind: str = "mp4", width: int = 64, height: int = 48, frames: int = 4) -> bytes:
    """A video whose first frame is red, and the others blue."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=CONTAINERS[kind]) as container:
        track = container.add_stream("mpeg4", rate=10, width=width, height=height)
        track.pix_fmt, track.bit_rate = "yuv420p", 8_000_000
        for number in range(frames):
            color = (0, 0, 255) if number else (200, 30, 30)
            given = av.VideoFrame.from_ndarray(scene(width, height, color), format="rgb24")
            container.mux(track.encode(given))
        container.mux(track.encode())
    return stream.getvalue()


def sound(kind: str = "mp4") -> bytes:
    """A file of silence, without pictures."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=CONTAINERS[kind]) as container:
        track = container.add_stream("aac", rate=8000, layout="mono")
        samples = np.zeros((1, 1024), np.float32)
        given = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        given.sample_rate = 8000
        for packet in chain(track.encode(given), track.encode()):
            container.mux(packet)
    return stream.getvalue()


def turned(content: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The MP4 with this matrix in the header of its track."""
    at = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return content[:at] + matrix + content[at + 36 :]


def is_like(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(image.getpixel(at), color)).max() < 16)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_first_frame(kind: str) -> None:
    image = decode(video(kind), "x")
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert is_like(image, (8, 8), (20, 220, 20))
    assert is_like(image, (56, 40), (200, 30, 30))


@pytest.mark.parametrize(
    ("matrix", "size", "green"),
    [
        ((1, 0, 0, 1), (64, 48), (8, 8)),
        ((0, 1, -1, 0), (48, 64), (40, 8)),  # a quarter turn to the right, as of phones
        ((-1, 0, 0, -1), (64, 48), (56, 40)),
        ((0, -1, 1, 0), (48, 64), (8, 56)),
    ],
)
def test_a_frame_is_turned_upright(
    matrix: tuple[int, int, int, int], size: tuple[int, int], green: tuple[int, int]
) -> None:
    image = decode(turned(video(), *matrix), "x")
    assert image.size == size
    corners = [(x, y) for x in (8, size[0] - 8) for y in (8, size[1] - 8)]
    assert [each for each in corners if is_like(image, each, (20, 220, 20))] == [green]


def test_videos_are_rows_like_images(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.MOV", "c.mkv"):
        (tmp_path / "videos" / name).write_bytes(video(name[2:].lower()))
    (tmp_path / "videos" / "d.avi").write_bytes(b"no video")
    encode_source(open_source(str(tmp_path / "videos")), Toy(), tmp_path / "out")
    rows, vectors = open_embeddings(tmp_path / "out").read()
    assert [Path(str(path)).name for path in rows["path"].to_pylist()] == [
        "a.mp4",
        "b.MOV",
        "c.mkv",
    ]
    framing = Toy().framing
    wanted = Toy().encode(frame(decode(video("mp4"), "x"), framing)[None])
    assert np.abs(vectors - wanted).max() < 0.02


def test_a_file_of_sound_is_refused() -> None:
    with pytest.raises(BadImage, match="sound without a picture"):
        decode(sound(), "x")


def test_limit_on_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    content = video(width=1200, height=900, frames=1)
    monkeypatch.setenv(MEGAPIXELS_VARIABLE, "1")
    with pytest.raises(BadImage, match=r"1,080,000 pixels; the maximum is 1,000,000"):
        decode(content, "x")


def test_a_playlist_that_is_named_as_a_video_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(video())
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n".encode()
    for content in (playlist, b"\x1a\x45\xdf\xa3" + playlist, b"\0\0\0\x08wide" + playlist):
        with pytest.raises(BadImage):
            decode(content, "x.mp4")


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_damaged_files_are_refused_or_decoded(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(video(kind), "x") > 10
    assert capfd.readouterr().err == ""


def test_a_cut_file_is_refused() -> None:
    content = video()
    for end in (12, 100, len(content) // 2):
        with pytest.raises(BadImage, match="truncated or damaged"):
            decode(content[:end], "x")


def test_first_frame_that_is_whole_is_taken() -> None:
    """Damage the first frame: the next that can be decoded is taken, or the file is refused."""
    content = video("avi", frames=12)
    at = content.index(b"00dc") + 8
    changed = content[:at] + bytes(8) + content[at + 8 :]
    try:
        assert decode(changed, "x").size == (64, 48)
    except BadImage as error:
        assert error.reason == "truncated or damaged"

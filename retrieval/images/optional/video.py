"""Read the first frame of a video with PyAV."""

from itertools import islice
from typing import Any, BinaryIO

import av
from PIL import Image

from retrieval.contracts import Framing
from retrieval.errors import BadImage
from retrieval.images.optional.formats import DecodeJpeg
from retrieval.images.pixels.decoding_limits import check_size

MAX_PACKETS = 500
"""Maximum packets of a video that are decoded until there is a frame."""

# The demuxer is named, so that FFmpeg takes no file for a playlist, which could name other files.
_DEMUXERS = ((b"\x1a\x45\xdf\xa3", "matroska"), (b"RIFF", "avi"), (b"", "mov"))
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def read(
    stream: BinaryIO, path: str, framing: Framing | None, decode_jpeg: DecodeJpeg
) -> Image.Image:
    """Return the first frame that can be decoded, upright. Raises BadImage if there is none."""
    stream.seek(0)
    head = stream.read(4)
    stream.seek(0)
    demuxer = next(name for begin, name in _DEMUXERS if head.startswith(begin))
    try:
        with av.open(stream, "r", format=demuxer, metadata_errors="replace") as container:
            frame = _first_frame(container, path)
            check_size(frame.width * frame.height, path)
            image = Image.fromarray(frame.to_ndarray(format="rgb24"))
            turn = _TURNS.get(round(frame.rotation) % 360)
    except (av.FFmpegError, MemoryError) as error:
        raise BadImage(path, "truncated or damaged") from error
    return image if turn is None else image.transpose(turn)


def _first_frame(container: Any, path: str) -> Any:
    # A cover picture is a video stream of one frame.
    streams = [each for each in container.streams.video if each.codec_context is not None]
    streams.sort(key=lambda each: bool(each.disposition & each.disposition.attached_pic))
    if not streams:
        is_sound = bool(container.streams.audio)
        raise BadImage(path, "sound without a picture" if is_sound else "truncated or damaged")
    stream = streams[0]
    check_size(stream.codec_context.width * stream.codec_context.height, path)
    stream.codec_context.thread_count = 1  # retr decodes many files at a time
    for packet in islice(container.demux(stream), MAX_PACKETS):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            if not frame.is_corrupt:
                return frame
    raise BadImage(path, "truncated or damaged")

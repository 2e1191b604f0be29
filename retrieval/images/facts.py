"""Read facts about an image without decoding it: size, date, camera, place, format."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from retrieval.contracts import Images
from retrieval.errors import BadImage
from retrieval.images.optional.formats import PhotoHeader
from retrieval.images.pixels.decoding import opened_header
from retrieval.images.pixels.jpeg_header import JpegHeader
from retrieval.images.pixels.quiet_pillow import pillow_quiet
from retrieval.images.reading import content_of
from retrieval.runtime.threads import usable_cores
from retrieval.storage.places import Place

MAX_CAMERA_LETTERS = 100
_DATE_TAGS = (
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
    ExifTags.Base.DateTime,
)
_ON_THE_SIDE = (5, 6, 7, 8)  # orientations of images whose width is stored as their height
_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about an image. Each is None if it is not known.

    width, height: in pixels, upright. bytes: None for pixels that are not a file, as in MNIST.
    taken: the EXIF date, in the local time of the camera. changed: seconds since 1970, of the
    file's last change. format: Pillow's name, such as JPEG. camera: its model, from EXIF.
    latitude, longitude: in degrees, north and east positive, from EXIF.
    """

    width: int
    height: int
    bytes: int | None = None
    taken: datetime | None = None
    changed: float | None = None
    format: str | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None

    @property
    def date(self) -> float | None:
        """Return the date taken, or else that of the last change, in seconds since 1970."""
        if self.taken is not None:
            with suppress(OverflowError, ValueError, OSError):  # before 1970, on some systems
                return self.taken.timestamp()
        return self.changed

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.width * self.height


def image_facts(path: str) -> ImageFacts:
    """Return the facts about the image at the path, which is as `read_image` takes it.

    Raises BadImage for an image that is missing, or whose header cannot be read.
    """
    return facts_of(content_of(path), path)


def facts_of(content: bytes | Place | Images | BadImage, path: str) -> ImageFacts:
    """Return the facts about the image of an item. `path` is its name in errors.

    Raises BadImage for an image that is missing, or whose header cannot be read.
    """
    if isinstance(content, BadImage):
        raise content
    if isinstance(content, np.ndarray):
        return ImageFacts(content.shape[1], content.shape[0])
    with opened_header(content, path) as header:
        image = header.image
        if isinstance(image, PhotoHeader):
            size, tags, kind = (image.width, image.height), _tags(image.exif), header.format
        else:
            tags, kind = _exif(image), image.format
            size = image.size if kind == "TIFF" else _upright_size(image.size, tags)
        return _facts(size, tags, header.size, header.changed, kind)


def jpeg_facts(header: JpegHeader, n_bytes: int) -> ImageFacts:
    """Return the facts about a JPEG of `n_bytes` in memory, as `facts_of` does, by its header."""
    with pillow_quiet:
        tags = {} if header.exif is None else _tags(header.exif)
    size = _upright_size((header.frame.width, header.frame.height), tags)
    return _facts(size, tags, n_bytes, None, JpegImageFile.format)


def _facts(
    size: tuple[int, int],
    tags: Mapping[int, Any],
    n_bytes: int,
    changed: float | None,
    kind: str | None,
) -> ImageFacts:
    latitude, longitude = _position(tags)
    return ImageFacts(
        *size,
        bytes=n_bytes,
        taken=_date_taken(tags),
        changed=changed,
        format=kind,
        camera=_camera(tags),
        latitude=latitude,
        longitude=longitude,
    )


def _upright_size(size: tuple[int, int], tags: Mapping[int, Any]) -> tuple[int, int]:
    """Return (width, height) of an image that is stored in this size."""
    return size[::-1] if tags.get(ExifTags.Base.Orientation) in _ON_THE_SIDE else size


def facts_of_each(paths: Sequence[str]) -> list[ImageFacts | BadImage]:
    """Return the facts about each image, read in threads, or its error."""

    def read(path: str) -> ImageFacts | BadImage:
        try:
            return image_facts(path)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(usable_cores()) as threads:
        return [*threads.map(read, paths)]


def is_local_file(path: str) -> bool:
    """Return whether the path is that of a file on this machine."""
    return "://" not in path and "\0" not in path and Path(path).is_file()


def _exif(image: ImageFile.ImageFile) -> dict[int, Any]:
    """Return the EXIF tags of the image, whose pixels are not read; none if they are damaged."""
    # Without EXIF data at its beginning, a PNG would be decoded to look for some at its end.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & {*image.info}:
        return {}
    with suppress(Exception):  # whatever Pillow raises for damaged EXIF data
        return _tags(image.getexif())
    return {}


def _tags(exif: Image.Exif) -> dict[int, Any]:
    """Return the tags of all parts of EXIF data; those of damaged parts are missing."""
    tags: dict[int, Any] = {}
    with suppress(Exception):  # whatever Pillow raises for damaged EXIF data
        tags |= exif
    for part in _IFDS:
        with suppress(Exception):
            tags |= exif.get_ifd(part)
    return tags


def _date_taken(tags: Mapping[int, Any]) -> datetime | None:
    """Return the date taken, in local time; None without one."""
    for tag in _DATE_TAGS:
        if tag not in tags:
            continue
        with suppress(ValueError):
            return datetime.strptime(str(tags[tag])[:19], "%Y:%m:%d %H:%M:%S")
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    """Return the camera's model."""
    model = tags.get(ExifTags.Base.Model)
    if not isinstance(model, str):
        return None
    printable = "".join(c if c.isprintable() else " " for c in model.partition("\0")[0])
    return " ".join(printable.split())[:MAX_CAMERA_LETTERS] or None


def _position(tags: Mapping[int, Any]) -> tuple[float | None, float | None]:
    """Return latitude and longitude in degrees; None for both unless both are valid."""
    latitude = _degrees(tags, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S", 90)
    longitude = _degrees(tags, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W", 180)
    return (None, None) if latitude is None or longitude is None else (latitude, longitude)


def _degrees(
    tags: Mapping[int, Any], tag: int, reference: int, negative: str, most: int
) -> float | None:
    """Return the angle of a tag with degrees, minutes and seconds."""
    with suppress(Exception):  # whatever is raised for values of other types
        degrees, minutes, seconds = map(float, tags[tag])
        found = degrees + minutes / 60 + seconds / 3600
        if math.isfinite(found) and 0 <= found <= most:
            return -found if str(tags.get(reference)).strip("\0 ").upper() == negative else found
    return None

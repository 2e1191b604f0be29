"""Read facts about an image without decoding it: size in pixels and bytes, date, format."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, ImageFile

from retrieval.errors import BadImage
from retrieval.images.decoding import opened_header
from retrieval.images.reading import content_of
from retrieval.runtime.threads import usable_cores

_DATE_TAGS = (
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
    ExifTags.Base.DateTime,
)
_ON_THE_SIDE = (5, 6, 7, 8)  # orientations of images whose width is stored as their height


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about an image.

    width, height: in pixels, upright. bytes: None for pixels that are not a file, as in MNIST.
    taken, changed: seconds since 1970, of the EXIF date taken and of the file's last change; None
        if it is not known. format: Pillow's name, such as JPEG; None as for bytes.
    """

    width: int
    height: int
    bytes: int | None = None
    taken: float | None = None
    changed: float | None = None
    format: str | None = None

    @property
    def date(self) -> float | None:
        """Return the date taken, or else that of the last change."""
        return self.changed if self.taken is None else self.taken

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.width * self.height


def image_facts(path: str) -> ImageFacts:
    """Return the facts about the image at the path, which is as `read_image` takes it.

    Raises BadImage for an image that is missing, or whose header cannot be read.
    """
    content = content_of(path)
    if isinstance(content, BadImage):
        raise content
    if isinstance(content, np.ndarray):
        return ImageFacts(content.shape[1], content.shape[0])
    with opened_header(content, path) as header:
        image = header.image
        tags = _exif(image)
        lies = image.format != "TIFF" and tags.get(ExifTags.Base.Orientation) in _ON_THE_SIDE
        width, height = image.size[::-1] if lies else image.size
        dates = _date_taken(tags), header.changed
        return ImageFacts(width, height, header.size, *dates, image.format)


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
        exif = image.getexif()
        return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    return {}


def _date_taken(tags: Mapping[int, Any]) -> float | None:
    """Return the date taken in seconds since 1970, as local time; None without one."""
    for tag in _DATE_TAGS:
        if tag not in tags:
            continue
        with suppress(ValueError, OverflowError):
            return datetime.strptime(str(tags[tag])[:19], "%Y:%m:%d %H:%M:%S").timestamp()
    return None

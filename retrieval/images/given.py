"""Images as a Python program has them: paths, pictures of Pillow, arrays, bytes and open files."""

import os
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage, BadInput
from retrieval.images.pixels.decoding import decode, load
from retrieval.images.pixels.framing import frame
from retrieval.images.reading import read_image
from retrieval.images.source import Item
from retrieval.storage.places import RemotePath

Given = (
    str
    | os.PathLike[str]
    | RemotePath
    | bytes
    | memoryview
    | BinaryIO
    | Image.Image
    | NDArray[np.uint8]
)
"""One image: a path that `read_image` takes, or its content."""

PATHS = (str, os.PathLike)
CONTENTS = (bytes, bytearray, memoryview)


def frame_given(image: Given | Item, framing: Framing, name: str) -> Images:
    """Return the pixels (side, side, 3) of one image, framed.

    image: an item of a source, or one image as `as_images` takes it.
    name: of an image that has no path, for errors.

    Raises BadImage for an image that cannot be read, BadInput for what is not an image.
    """
    if isinstance(image, Item):
        return load(image, framing)
    return frame(_opened(image, name, framing), framing)


def as_images(images: Given | Iterable[Given]) -> list[Given]:
    """Return the images one by one; a single one is a list of one.

    One image is a path or URL, the bytes of an image file, a file open in binary mode (read from
    its start), an image of Pillow, or an array of uint8: (h, w) grayscale, (h, w, 3) RGB or
    (h, w, 4) RGBA. Several are a list of these, or an array with a first axis more, (n, h, w, 3)
    or (n, h, w, 4).

    Raises BadInput for an object that is neither.
    """
    if isinstance(images, (*PATHS, RemotePath, *CONTENTS, Image.Image)):
        return [cast(Given, images)]
    if hasattr(images, "read"):
        return [cast(BinaryIO, images)]
    if hasattr(images, "__array__"):
        array = _array(images)
        if array.ndim == 1 and (array.dtype.kind in "OUS" or not array.size):  # paths, or nothing
            return [*array.tolist()]
        return [*array] if array.ndim == 4 else [array]
    try:
        return [*images]
    except TypeError:
        raise _not_an_image(images) from None


def _opened(image: Any, name: str, framing: Framing) -> Image.Image:
    """Return the image in RGB."""
    if isinstance(image, RemotePath):
        return read_image(str(image), framing)
    if isinstance(image, PATHS):
        return read_image(os.fsdecode(image), framing)
    if isinstance(image, CONTENTS):
        return decode(bytes(image), name, framing)
    if isinstance(image, Image.Image):
        return decode(image, name, framing)
    if hasattr(image, "read"):
        return decode(_content(image, name), name, framing)
    if hasattr(image, "__array__"):
        return decode(Image.fromarray(_checked(_array(image), name)), name, framing)
    raise _not_an_image(image)


def _content(file: Any, name: str) -> bytes:
    """Return the bytes of an open file. Raises BadImage if it cannot be read, BadInput for text."""
    try:
        if file.seekable():
            file.seek(0)  # Pillow rewinds buffers that were just written, too
        content = file.read()
    except UnicodeDecodeError:
        content = ""
    except (OSError, ValueError) as problem:  # ValueError: the file is closed
        raise BadImage(name, str(problem)) from None
    if not isinstance(content, bytes):
        raise BadInput(f"image {name} is a file open as text; open it with mode 'rb'")
    return content


def _array(value: Any) -> NDArray[Any]:
    """Return an array. Raises BadInput for one that numpy cannot read: a tensor on a GPU."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise _not_an_image(value) from None


def _checked(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return the array. Raises BadInput unless it holds the pixels of an image."""
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_image or array.size == 0:
        raise BadInput(
            f"image {name} is an array of shape {array.shape}; give (h, w), (h, w, 3) or (h, w, 4)"
        )
    if array.dtype != np.uint8:
        raise BadInput(f"image {name} is an array of {array.dtype}; give uint8, from 0 to 255")
    return array


def _not_an_image(value: object) -> BadInput:
    return BadInput(
        f"a {type(value).__name__} is not an image; give a path, bytes, an open file, an image of "
        "Pillow, an array, or a list of these"
    )

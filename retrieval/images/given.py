"""Images as a Python program has them: paths, pictures of Pillow, arrays, bytes and open files."""

import os
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadInput
from retrieval.images.decoding import decode, frame
from retrieval.images.reading import read_image
from retrieval.storage.places import RemotePath

Given = str | os.PathLike[str] | RemotePath | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""One image: where `read_image` finds it, or its content."""


def framed(images: Given | Iterable[Given], framing: Framing) -> list[Images]:
    """Return each image's pixels (side, side, 3), framed, in the order given.

    images: one image or several. One is a path or URL, the bytes of an image file, a file open in
        binary mode (read from its start), an image of Pillow, or an array of uint8: (h, w) grey,
        (h, w, 3) RGB or (h, w, 4) RGBA. Several are a list of these, or an array with a first axis
        more, (n, h, w, 3) or (n, h, w, 4).

    Raises BadImage for an image that cannot be read, BadInput for what is none.
    """
    return [
        frame(_opened(image, number, framing), framing)
        for number, image in enumerate(as_images(images), start=1)
    ]


def as_images(images: Given | Iterable[Given]) -> list[Given]:
    """Return the images one by one; a single one is a list of one."""
    if isinstance(images, str | os.PathLike | RemotePath | bytes | bytearray | Image.Image):
        return [cast(Given, images)]
    if hasattr(images, "read"):
        return [cast(BinaryIO, images)]
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.dtype.kind in "OUS" and array.ndim == 1:  # an array of paths
            return [*array.tolist()]
        return [*array] if array.ndim == 4 else [array]
    try:
        return [*images]
    except TypeError:
        raise _not_an_image(images) from None


def _opened(image: Any, number: int, framing: Framing) -> Image.Image:
    """The image in RGB. number: of this image among those given, for errors."""
    name = f"{number} of those given"
    if isinstance(image, str | os.PathLike | RemotePath):
        return read_image(str(image), framing)
    if isinstance(image, bytes | bytearray):
        return decode(bytes(image), name, framing)
    if isinstance(image, Image.Image):
        return decode(image, name, framing)
    if hasattr(image, "read"):
        if image.seekable():
            image.seek(0)  # as Pillow does, for buffers that were just written
        content = image.read()
        if not isinstance(content, bytes):
            raise BadInput(f"image {name} is a file open as text; open it with mode 'rb'")
        return decode(content, name, framing)
    if hasattr(image, "__array__"):
        return decode(Image.fromarray(_checked(np.asarray(image), name)), name, framing)
    raise _not_an_image(image)


def _checked(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """The array. Raises BadInput unless it holds the pixels of an image."""
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
        f"a {type(value).__name__} is no image; give a path, bytes, an open file, an image of "
        "Pillow, an array, or a list of these"
    )

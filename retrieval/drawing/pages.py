"""Write pages of HTML as one file: pictures are inside, and nothing else is loaded."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from retrieval.errors import CannotWrite
from retrieval.storage.files import write_whole


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write the template with these values, whole or not at all. All text is escaped.

    Raises CannotWrite if the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("retrieval.drawing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values)
    try:
        write_whole(path, lambda partial: partial.write_text(text, "utf-8", "backslashreplace"))
    except OSError as error:
        raise CannotWrite(path, error) from None


def embedded_picture(image: Image.Image, side: int) -> str:
    """Return the image as the source of an <img>: a small one as PNG, a larger one as JPEG.

    side: pixels of the longest side up to which an image is small. A larger one is reduced to twice
    this side.
    """
    small = max(image.size) <= side
    shown = image.copy()
    shown.thumbnail((2 * side, 2 * side))
    written = io.BytesIO()
    shown.save(written, "PNG" if small else "JPEG", quality=80)
    return embedded(written.getvalue(), "png" if small else "jpeg")


def embedded(content: bytes, kind: str) -> str:
    """Return the content of an image file as the source of an <img>. kind: such as png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

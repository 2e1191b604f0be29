"""Images: where they come from, and how they become pixels.

`open_source` opens a source of items by its name or path. `load` turns an item into the pixels
that an encoder sees; `frame_given` does the same with an image that a program holds. `read_image`
and `read_each` read images again by their items' paths.
"""

from retrieval.images.decoding import MANY, check_framed, decode, frame, load
from retrieval.images.given import Given, as_images, frame_given
from retrieval.images.opening import NAMES, open_source
from retrieval.images.reading import read_each, read_image
from retrieval.images.source import Item, Source
from retrieval.images.tables.columns import Columns

__all__ = [
    "MANY",
    "NAMES",
    "Columns",
    "Given",
    "Item",
    "Source",
    "as_images",
    "check_framed",
    "decode",
    "frame",
    "frame_given",
    "load",
    "open_source",
    "read_each",
    "read_image",
]

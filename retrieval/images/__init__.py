"""Images: where they come from, and how they become pixels.

`open_source` opens a source of items by its name or path; `load` turns an item into the pixels
that an encoder sees, `framed` does so with the images that a program has; `read_image` and
`read_framed` find images again by their items' paths.
"""

from retrieval.images.decoding import MANY, decode, load
from retrieval.images.framing import check_framed, frame
from retrieval.images.given import Given, as_images, framed
from retrieval.images.opening import NAMES, open_source
from retrieval.images.reading import read_each, read_framed, read_image
from retrieval.images.source import Item, Source
from retrieval.images.tables.choice import Columns

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
    "framed",
    "load",
    "open_source",
    "read_each",
    "read_framed",
    "read_image",
]

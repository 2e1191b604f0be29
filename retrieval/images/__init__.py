"""Images: their sources, and the way from a file to pixels.

`open_source` opens a source of items by its name or path. `load` turns an item into the pixels
that an encoder sees; `frame_given` does the same with an image that a program holds. `read_image`
and `read_each` read images again by their items' paths.
"""

from typing import TYPE_CHECKING

from retrieval.lazy import lazy_names

if TYPE_CHECKING:
    from retrieval.images.given import Given as Given
    from retrieval.images.given import as_images as as_images
    from retrieval.images.given import frame_given as frame_given
    from retrieval.images.opening import DATA_SET_NAMES as DATA_SET_NAMES
    from retrieval.images.opening import open_source as open_source
    from retrieval.images.pixels.decoding import FAST_RESIZE_IMAGES as FAST_RESIZE_IMAGES
    from retrieval.images.pixels.decoding import decode as decode
    from retrieval.images.pixels.decoding import load as load
    from retrieval.images.pixels.framing import check_framed as check_framed
    from retrieval.images.pixels.framing import frame as frame
    from retrieval.images.reading import read_each as read_each
    from retrieval.images.reading import read_image as read_image
    from retrieval.images.source import Item as Item
    from retrieval.images.source import Source as Source
    from retrieval.images.tables.choice import Columns as Columns

# Imported on first use: a search for an image opens no source, and reads no table.
_HOMES = {
    "Columns": "tables.choice",
    "Given": "given",
    "Item": "source",
    "FAST_RESIZE_IMAGES": "pixels.decoding",
    "DATA_SET_NAMES": "opening",
    "Source": "source",
    "as_images": "given",
    "check_framed": "pixels.framing",
    "decode": "pixels.decoding",
    "frame": "pixels.framing",
    "frame_given": "given",
    "load": "pixels.decoding",
    "open_source": "opening",
    "read_each": "reading",
    "read_image": "reading",
}
__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)

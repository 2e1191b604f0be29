"""Keep warnings and logs of Pillow and libtiff off stderr."""

import logging
import re
import threading
import warnings
from contextlib import suppress
from functools import cache
from typing import cast

from PIL import Image

from retrieval.images.pixels.megapixels import max_pixels


@cache
def quiet_libtiff() -> None:
    """Keep libtiff from writing to stderr. Pillow raises an error for the same fault."""
    import ctypes

    from PIL import _imaging

    with suppress(AttributeError, OSError):  # libtiff is linked in another way
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


class _Hush:
    """Context that keeps Pillow's warnings and log off stderr while any thread is in it.

    It also lifts Pillow's limit on pixels if `max_megapixels` is above that.

    The warnings are about metadata, or repeat BadImage. `catch_warnings` would not be safe in
    threads, and would show other modules' warnings again. Log handlers of the program still get
    the log.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
        self._logger = logging.getLogger("PIL")
        self._handler = logging.NullHandler()
        self._pillows_limit = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                cast("list[object]", warnings.filters).insert(0, self._filter)
                self._logger.addHandler(self._handler)
                self._pillows_limit = Image.MAX_IMAGE_PIXELS
                if self._pillows_limit and 2 * self._pillows_limit < max_pixels():
                    Image.MAX_IMAGE_PIXELS = None
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._logger.removeHandler(self._handler)
                Image.MAX_IMAGE_PIXELS = self._pillows_limit
                # It is gone where other code has put the filters back to what they were before.
                with suppress(ValueError):
                    cast("list[object]", warnings.filters).remove(self._filter)


pillow_quiet = _Hush()

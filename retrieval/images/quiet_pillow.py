"""Keep warnings and logs of Pillow and libtiff off stderr."""

import logging
import re
import threading
import warnings
from contextlib import suppress
from functools import cache
from typing import cast

from PIL import Image

from retrieval.images.megapixels import max_pixels


@cache
def quiet_libtiff() -> None:
    """It writes what is wrong with a file to stderr, beside the error that Pillow raises."""
    import ctypes

    from PIL import _imaging

    with suppress(AttributeError, OSError):  # where it is linked in another way
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


class _Hush:
    """Keeps Pillow's warnings and its log from stderr while any thread is in it.

    Pillow's limit on pixels is lifted meanwhile if `max_megapixels` was set above it.

    They are about metadata, or say once more what BadImage says. `catch_warnings` is no way:
    it isn't safe in threads, and makes other modules' warnings show again. Handlers that a
    program has set up get the log all the same.
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

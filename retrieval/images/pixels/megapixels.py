"""The limit on the size of a decoded image."""

import os

from retrieval.errors import BadInput

MEGAPIXELS_VARIABLE = "RETR_MAX_MEGAPIXELS"
DEFAULT_MEGAPIXELS = 100


def max_megapixels() -> int:
    """Return the largest image that is decoded, in megapixels: RETR_MAX_MEGAPIXELS, else 100.

    Raises BadInput unless the variable holds a whole number above 0.
    """
    value = os.environ.get(MEGAPIXELS_VARIABLE, "").strip()
    if not value:
        return DEFAULT_MEGAPIXELS
    if not (value.isascii() and value.isdigit() and int(value)):
        raise BadInput(
            f"{MEGAPIXELS_VARIABLE} is '{value}'; set it to a whole number of megapixels above 0"
        )
    return int(value)


def max_pixels() -> int:
    """Return the largest image that is decoded, in pixels."""
    return 1_000_000 * max_megapixels()


def limit_megapixels(count: int) -> None:
    """Set the limit for this process and its children. Raises BadInput for less than 1."""
    if count < 1:
        raise BadInput(f"{count} megapixels; give a whole number above 0")
    os.environ[MEGAPIXELS_VARIABLE] = str(count)

"""Numbers of random inputs for each property: `make test` draws a quarter of `make test-all`'s."""

import os

ALL = "RETR_EXAMPLES" in os.environ
MIN_EXAMPLES = 10


def examples(number: int) -> int:
    """Return how many inputs to draw, if `make test-all` draws `number`."""
    return number if ALL else max(MIN_EXAMPLES, number // 4)

"""What `make test` leaves to `make test-all`: random inputs, and values of parameters."""

import os
from typing import Any

import pytest

ALL = "RETR_EXAMPLES" in os.environ
MIN_EXAMPLES = 10


def slow(*values: Any) -> Any:
    """Return a set of parameters that is left to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def examples(number: int) -> int:
    """Return how many inputs to draw, if `make test-all` draws `number`."""
    return number if ALL else max(MIN_EXAMPLES, number // 4)

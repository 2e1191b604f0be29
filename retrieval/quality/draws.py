"""Random draws of images, by class."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import Rows
from retrieval.errors import BadInput


def draw_of_each_class(
    labels: NDArray[Any],
    classes: Iterable[str],
    count: int,
    generator: np.random.Generator,
    *,
    why: str,
    remedy: str,
) -> Rows:
    """Return `count` random rows of each class, ascending.

    labels: (n,). why, remedy: parts of the error message: the reason for `count`, and what to do.
    Raises BadInput for a class with fewer rows.
    """
    drawn = []
    for name in classes:
        rows = np.flatnonzero(labels == name)
        if len(rows) < count:
            raise BadInput(f"class '{name}' has {len(rows)} images, and {why}; {remedy}")
        drawn.append(generator.permutation(rows)[:count])
    return np.sort(np.concatenate(drawn))

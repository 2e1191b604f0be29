"""Rank pairs of images by how likely one is a crop of the other, by their thumbnails."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from retrieval.contracts import Images, Rows
from retrieval.pairs.likeness import NOISE_LEVELS
from retrieval.runtime.threads import usable_cores

Gray = NDArray[np.float32]

WINDOW_SIDES = (8, 10, 12, 14, 16)  # pixels; windows of a thumbnail of 16 pixels
BLOCK_SIZE = 256  # pairs compared in one step
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def window_correlations(pixels: Images, wholes: Rows, parts: Rows) -> Gray:
    """Return the highest correlation (n,) of each part with a window of the whole thumbnail.

    pixels: thumbnails (images, side, side, 3). wholes, parts: rows (n,) of these.
    """
    found = np.empty(len(wholes), np.float32)

    def compare(start: int) -> None:
        some = slice(start, start + BLOCK_SIZE)
        found[some] = _best(pixels[wholes[some]] @ LUMA, pixels[parts[some]] @ LUMA)

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(compare, range(0, len(wholes), BLOCK_SIZE)))
    return found


def _best(wholes: Gray, parts: Gray) -> Gray:
    side = wholes.shape[1]
    wholes = wholes - wholes.mean(axis=(1, 2), keepdims=True)
    best = np.full(len(wholes), -1, np.float32)
    scaled = {size: _scaling(size, side) for size in WINDOW_SIDES}
    for down, across in product(WINDOW_SIDES, WINDOW_SIDES):
        if down == across == side:
            continue
        templates = (scaled[down] @ parts @ scaled[across].T).reshape(len(parts), -1)
        templates -= templates.mean(axis=1, keepdims=True)
        windows = sliding_window_view(wholes, (down, across), axis=(1, 2))
        columns = windows.reshape(len(wholes), -1, down * across)
        products = (columns @ templates[:, :, None])[:, :, 0]
        squares = np.einsum("nps,nps->np", columns, columns)
        variance = squares - columns.sum(axis=2) ** 2 / (down * across)
        noise = NOISE_LEVELS**2 * down * across
        norms = np.einsum("ns,ns->n", templates, templates) + noise
        scores = products / np.sqrt((np.maximum(variance, 0) + noise) * norms[:, None])
        np.maximum(best, scores.max(axis=1), out=best)
    return best


def _scaling(size: int, side: int) -> Gray:
    """Return the matrix (size, side) that scales a side of pixels by area."""
    edges = np.arange(size + 1) * (side / size)
    places = np.arange(side)
    shares = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    scaling: Gray = (np.maximum(shares, 0) * (size / side)).astype(np.float32)
    return scaling

"""Lay out embeddings in the plane, for maps."""

from enum import StrEnum

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadInput

UMAP_NEIGHBORS = 15  # UMAP's default


class Layout(StrEnum):
    """Methods to lay out embeddings in the plane."""

    PCA = "pca"  # the two directions in which they vary most
    UMAP = "umap"  # McInnes et al., arXiv:1802.03426: neighbors stay neighbors


def laid_out(vectors: Vectors, layout: Layout | str, metric: Metric | str, seed: int) -> Vectors:
    """Return points (n, 2) for vectors (n, dim). metric: for the neighbors of UMAP.

    Raises BadInput for fewer than four vectors, for one dimension, and if umap-learn is not
    installed.
    """
    metric = choice(Metric, metric)
    layout = choice(Layout, layout)
    if len(vectors) < 4:  # UMAP's initial layout needs 4
        raise BadInput(f"a map needs 4 embeddings, and there are {len(vectors)}; give more")
    if vectors.shape[1] < 2:
        raise BadInput("a map needs 2 dimensions, and the embeddings have 1; give others")
    if layout is Layout.PCA:
        from sklearn.decomposition import PCA  # slow to import

        return np.asarray(PCA(2, random_state=seed).fit_transform(vectors), np.float32)
    try:
        from umap import UMAP  # even slower to import
    except ImportError:
        raise BadInput(
            "umap-learn is not installed; pip install 'retr[plots]', or use pca"
        ) from None
    # UMAP has no inner product. For vectors of one length, cosine has the same neighbors.
    known = Metric.COSINE if metric is Metric.INNER_PRODUCT else metric
    neighbors = min(UMAP_NEIGHBORS, len(vectors) - 1)
    layout_of = UMAP(metric=str(known), n_neighbors=neighbors, random_state=seed, n_jobs=1)
    points = layout_of.fit_transform(vectors)
    return np.asarray(points, np.float32)

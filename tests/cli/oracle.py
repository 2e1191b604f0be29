"""True neighbors, by numpy alone and in double precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def distances(query: ArrayLike, vectors: ArrayLike, metric: str) -> NDArray[np.float64]:
    """Return the distances (n,) of the query (dim,) to the vectors (n, dim)."""
    q, x = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    match metric:
        case "euclidean":
            return np.asarray(np.sqrt(((x - q) ** 2).sum(axis=1)))
        case "manhattan":
            return np.asarray(np.abs(x - q).sum(axis=1))
        case "inner_product":
            return np.asarray(-(x @ q))
        case "cosine":
            return np.asarray(1 - x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q)))
    raise ValueError(metric)


def check_nearest(
    hits: Sequence[Any],
    query: ArrayLike,
    vectors: ArrayLike,
    rows: Sequence[dict[str, Any]],
    k: int,
    metric: str = "euclidean",
) -> None:
    """Fail unless the hits are the k nearest rows, nearest first, with their id, label and path.

    rows: id, label and path of each of the vectors, as the embeddings folder has them.
    """
    far = distances(query, vectors, metric)
    wanted = np.argsort(far, kind="stable")[:k].tolist()
    assert [hit["id"] for hit in hits] == [rows[row]["id"] for row in wanted]
    for rank, (hit, row) in enumerate(zip(hits, wanted, strict=True), start=1):
        assert hit.keys() == {"rank", "id", "label", "distance", "path"}
        assert hit["rank"] == rank
        assert hit["label"] == rows[row]["label"]
        assert hit["path"] == rows[row]["path"]
        # faiss squares float32 numbers: near 0, the root loses half of the digits
        assert abs(hit["distance"] - far[row]) < 1e-3

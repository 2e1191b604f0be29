"""Measure raw pixels, and PCA of them: `python -m benchmarks.studies.baselines --help`.

Vectors are the pixels of 32×32 images from 0 to 1, less the mean image of the database. PCA is
fitted on the database. The distance of both is the cosine, which is better here than Euclidean.
"""

import argparse
import json
from typing import cast

import numpy as np

from retrieval.contracts import Framing, Json, Metric, Vectors
from retrieval.images import Source, load, open_source
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled

FRAMING = Framing(side=32)


def pixels(
    source: Source, framing: Framing = FRAMING
) -> tuple[Vectors, list[str], list[str | None]]:
    """Return the pixels (n, 3 · side²) of all images, their ids and labels."""
    vectors = np.empty((len(source), 3 * framing.side**2), np.float32)
    ids, labels = [], []
    for row, item in enumerate(source.items()):
        vectors[row] = load(item, framing).reshape(-1)
        ids.append(item.id)
        labels.append(item.label)
    return vectors / np.float32(255), ids, labels


def components(centered: Vectors, dim: int) -> Vectors:
    """Return the first `dim` principal components (features, dim) of centered vectors."""
    covariance = (centered.T @ centered).astype(np.float64) / len(centered)
    _, vectors = np.linalg.eigh(covariance)
    return cast(Vectors, vectors[:, -dim:].astype(np.float32))


def measure(name: str, dims: list[int], limit: int | None) -> dict[str, Json]:
    """Return mAP and precision@10 of raw pixels and PCA to each of `dims`, by two protocols."""
    asked = pixels(open_source(name, "test", limit=limit))
    searched = pixels(open_source(name, "train", limit=limit))
    mean = searched[0].mean(axis=0)
    queries, database = asked[0] - mean, searched[0] - mean
    spaces = {"pixels": (queries, database)}
    for dim in dims:
        axes = components(database, dim)
        spaces[f"pca {dim}"] = (queries @ axes, database @ axes)
    results: dict[str, Json] = {}
    for space, (of_queries, of_database) in spaces.items():
        test = Labelled(of_queries, *asked[1:])
        official = evaluate(test, Labelled(of_database, *searched[1:]), Metric.COSINE, (10,))
        unseen = evaluate(test, test, Metric.COSINE, (10,))
        results[space] = {
            protocol: {
                "map": result.map,
                "precision_at_10": result.precision_at[10],
                "knn_accuracy": result.knn_accuracy,
            }
            for protocol, result in (("official", official), ("unseen", unseen))
        }
    return results


def main() -> None:
    """Print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="cifar10")
    parser.add_argument(
        "--dim", type=int, action="append", help="dimension of PCA; may be repeated"
    )
    parser.add_argument("--limit", type=int, help="the first N images of each split only")
    given = parser.parse_args()
    print(json.dumps(measure(given.source, given.dim or [64], given.limit), indent=2))


if __name__ == "__main__":
    main()

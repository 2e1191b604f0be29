"""Measure an encoder in all protocols and storage forms: `python -m benchmarks.studies.storage -h`.

Float embeddings are compared by their metric. Binary embeddings are the signs of the numbers less
the database's mean, compared by Hamming distance; ties rank by row. int8 scales each vector by its
largest number, which is stored in four bytes unless embeddings are compared by cosine.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Json, Mask, Metric, Vectors
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import TRAINING_IMAGES_PER_CLASS, Protocol, sides_of
from retrieval.quality.provenance import provenance_of, seen
from retrieval.storage.sets.embeddings import open_embeddings

Stored = Callable[[Vectors, Vectors], Vectors]
"""Map vectors (n, dim) and the database's mean (dim,) to the vectors after storage."""


def _int8(vectors: Vectors, mean: Vectors) -> Vectors:
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    step = np.maximum(largest, 1e-30) / 127
    restored: Vectors = np.rint(vectors / step).astype(np.int8) * step
    return restored


STORAGE: Mapping[str, tuple[float, Stored]] = {
    # bytes per number, and a function that rounds to the form
    "float32": (4, lambda vectors, mean: vectors),
    "float16": (2, lambda vectors, mean: vectors.astype(np.float16).astype(np.float32)),
    "int8": (1, _int8),
    "binary": (1 / 8, lambda vectors, mean: np.where(vectors > mean, 1, -1).astype(np.float32)),
}


def measure(
    test: Labelled, train: Labelled, metric: Metric | str, trained_on: Mask, seed: int
) -> list[dict[str, Json]]:
    """Yield mAP, precision@10 and kNN accuracy in each protocol and form of storage.

    trained_on: (train,), mask of the images that the encoder has seen. hashing-54k is included if
    these are none, or 500 of each class.
    """
    metric = choice(Metric, metric)
    protocols = [Protocol.OFFICIAL, Protocol.UNSEEN, Protocol.HASHING_59K]
    if trained_on.sum() in (0, TRAINING_IMAGES_PER_CLASS * len(set(train.labels))):
        protocols.append(Protocol.HASHING_54K)
    rows: list[dict[str, Json]] = []
    for protocol in protocols:
        sides = sides_of(protocol, test, train, trained_on, seed)
        queries, database = sides.queries, sides.database
        mean = database.vectors.mean(axis=0)
        for storage, (n_bytes, stored) in STORAGE.items():
            asked, searched = (
                Labelled(stored(side.vectors, mean), side.ids, side.labels)
                for side in (queries, database)
            )
            used = Metric.COSINE if storage == "binary" else metric
            scale = 4 if storage == "int8" and metric is not Metric.COSINE else 0
            result = evaluate(asked, searched, used, (10,))
            rows.append(
                {
                    "protocol": protocol.value,
                    "storage": storage,
                    "bytes": math.ceil(n_bytes * test.vectors.shape[1]) + scale,
                    "map": result.map,
                    "precision_at_10": result.precision_at[10],
                    "knn_accuracy": result.knn_accuracy,
                }
            )
    return rows


def main() -> None:
    """Print the rows as JSON, one per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", type=Path, required=True, help="embeddings of the test split")
    parser.add_argument(
        "--train", type=Path, required=True, help="embeddings of the training split"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the hashing protocols")
    given = parser.parse_args()
    test, train = (open_embeddings(folder) for folder in (given.test, given.train))
    of_test, of_train = Labelled.of(test), Labelled.of(train)
    trained_on = seen(of_train, train.facts.source, provenance_of(train.facts.encoder))
    for row in measure(of_test, of_train, test.facts.metric, trained_on, given.seed):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

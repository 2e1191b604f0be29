"""Compare distances: `python -m benchmarks.studies.distances --help`.

Each image of the given embeddings is a query for its class among all other images.
"""

import argparse
import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from retrieval.choices import choice
from retrieval.contracts import Json, Metric
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings

METRICS = (Metric.MANHATTAN, Metric.EUCLIDEAN, Metric.COSINE)


def measure(images: Labelled, metric: Metric | str, k: int) -> dict[str, Json]:
    """Return mAP and precision@k of all images by one distance, with 95% intervals."""
    metric = choice(Metric, metric)
    result = evaluate(images, images, metric, (k,))
    names = ("map", f"precision_at_{k}")
    return {
        "metric": metric.value,
        "queries": result.queries,
        **{name: result.means[name] for name in names},
        "intervals": {name: list(result.intervals[name]) for name in names},
    }


def together(embeddings: Sequence[Embeddings]) -> Labelled:
    """Return the images of all folders. Raises Mismatch unless one encoder made them."""
    first = embeddings[0]
    for other in embeddings[1:]:
        check_same_encoder(
            first.facts.encoder, other.facts.encoder, str(first.folder), str(other.folder)
        )
    return reduce(Labelled.with_rows_of, map(Labelled.of, embeddings))


def main() -> None:
    """Print a row for each distance as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path, nargs="+")
    parser.add_argument("-k", type=int, default=10)
    given = parser.parse_args()
    images = together([open_embeddings(folder) for folder in given.embeddings])
    for metric in METRICS:
        print(json.dumps(measure(images, metric, given.k)), flush=True)


if __name__ == "__main__":
    main()

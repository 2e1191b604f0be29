"""Measure what each precision costs: `python -m benchmarks.studies.precision --help`.

The images of a test split are encoded in each precision, in the way that is fastest on this
machine. Each image is then a query for the others: mAP and P@10 by label, of queries and database
in one precision, and of each mixture of two.
"""

import argparse
import json
import time
from itertools import product
from typing import Any, cast

import numpy as np

from benchmarks.suite import machine
from retrieval.contracts import Images, Json, Vectors
from retrieval.embedding.runtimes.agreement import deviation
from retrieval.embedding.runtimes.choice import RunBy
from retrieval.embedding.runtimes.contract import Precision
from retrieval.embedding.runtimes.running import Running
from retrieval.images import Source, load, open_source
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.registry import open_encoder

LARGE_SOURCE_IMAGES = 1_000_000
"""The ways are those for a large source, for which int8 is tried."""


def measure(encoder_name: str, source: Source, runtime: str = "auto") -> dict[str, Json]:
    """Return the measures in float32, and the loss of each other precision and mixture.

    runtime: as for `RunBy`. The source needs labels.
    """
    encoder = open_encoder(encoder_name, "cpu")
    items = [*source.items()]
    images = np.stack([load(item, encoder.framing) for item in items])
    vectors: dict[Precision, Vectors] = {}
    found: dict[str, Any] = {"encoder": encoder.name, "source": source.name, "images": len(items)}
    for precision in Precision:
        runner = RunBy(precision, runtime).runner(encoder, source, LARGE_SOURCE_IMAGES)
        assert isinstance(runner, Running)
        vectors[precision], rate = _encoded(runner, images)
        off = deviation(vectors[Precision.EXACT], vectors[precision], encoder.metric)
        found[precision] = {
            "made_by": str(runner.made_by),
            "images_per_second": rate,
            "noise": off.noise,
            "least_cosine": 1 - off.worst / 2,
        }

    def scores(queries: Precision, database: Precision) -> tuple[float, float]:
        ids, labels = [item.id for item in items], [item.label for item in items]
        asked = Labelled(vectors[queries], ids, labels)
        there = Labelled(vectors[database], ids, labels)
        measured = evaluate(asked, there, encoder.metric, ks=(10,))
        return measured.map or 0.0, measured.precision_at[10]

    exact = scores(Precision.EXACT, Precision.EXACT)
    found["map"], found["precision_at_10"] = exact
    for pair in product(Precision, Precision):
        lost = np.subtract(scores(*pair), exact)
        found[f"{pair[0]} queries, {pair[1]} database"] = {
            "map": float(lost[0]),
            "precision_at_10": float(lost[1]),
        }
    return {**found, "machine": machine.describe()}


def _encoded(runner: Running, images: Images) -> tuple[Vectors, float]:
    started = time.perf_counter()
    vectors = runner.encode(images)
    return vectors, len(images) / (time.perf_counter() - started)


def main() -> None:
    """Print the measures, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="siamese-quick")
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--runtime", default="auto")
    given = parser.parse_args()
    source = open_source(given.source, given.split, limit=given.images)
    print(json.dumps(cast(Any, measure(given.encoder, source, given.runtime)), indent=2))


if __name__ == "__main__":
    main()

"""Measure the contrastive loss of pairs: `python -m benchmarks.studies.contrastive --help`.

Pairs are drawn at random, half of them of one class. The mean loss of any two images follows from
both kinds of pairs. The loss is ½ d² for pairs of one class, and ½ max(0, margin − d)² for others,
at Euclidean distance d: Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping
(CVPR 2006). Many implementations omit the ½, so that their losses are twice as large.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from retrieval.contracts import Json, Metric
from retrieval.pairs.calibration import Alike
from retrieval.pairs.draw import Scheme, draw_pairs, pair_distances
from retrieval.quality.labelled import Labelled
from retrieval.quality.ranking import Distances
from retrieval.quality.significance import interval_over_pairs
from retrieval.storage.sets.embeddings import open_embeddings


def contrastive(distances: Distances, alike: Alike, margin: float) -> Distances:
    """Return the loss (n,) of pairs at these distances (n,). alike: (n,), pairs of one class."""
    return np.asarray(np.where(alike, distances, np.maximum(0, margin - distances)) ** 2 / 2)


def measure(images: Labelled, margin: float, count: int, seed: int) -> dict[str, Json]:
    """Return the mean loss of random pairs of labeled images, and its 95% interval."""
    drawn = draw_pairs(images.numbers(images.classes()), count, Scheme.RANDOM, seed)
    distances = pair_distances(images.vectors, drawn, Metric.EUCLIDEAN)
    losses = contrastive(distances, drawn.alike, margin)
    of_alike, of_others = (float(losses[kind].mean()) for kind in (drawn.alike, ~drawn.alike))
    sizes = np.array([*images.rows_of_classes().values()])
    share = float((sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1)))
    return {
        "pairs": len(drawn),
        "loss": float(losses.mean()),
        "interval": interval_over_pairs(losses[:, None], drawn.first, drawn.second)[:, 0].tolist(),
        "of_alike": of_alike,
        "of_others": of_others,
        "of_any_two": share * of_alike + (1 - share) * of_others,
    }


def main() -> None:
    """Print the loss as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--margin", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    images = Labelled.of(open_embeddings(given.embeddings))
    print(json.dumps(measure(images, given.margin, given.pairs, given.seed), indent=2))


if __name__ == "__main__":
    main()

"""Score pairs of unseen images in small sets: `python -m benchmarks.studies.layers --help`.

Such scorers are published with their accuracy over all 66 pairs of 12 images, four of each of three
classes. 18 of these pairs show one class, so a scorer that always denies it has an accuracy
of 48 / 66, or 0.727. Here many such sets are drawn from images that the scorer was not trained on.
Its probabilities assume that half of the pairs show one class. With 18 such pairs to 48 others,
the threshold is at odds of 48 to 18.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.studies.unseen import unseen
from retrieval.contracts import Json
from retrieval.errors import BadInput, RetrError
from retrieval.registry import open_scorer
from retrieval.storage.cards import Card


def measure(
    folder: Path, split: str, images: int, per_class: int, draws: int, seed: int
) -> dict[str, Json]:
    """Return the mean accuracy over sets of `per_class` images per class, and its 95% range.

    images: number per class to draw from. Raises BadInput for a class with fewer.
    """
    card = Card.read(folder)
    pixels, _, labels = unseen(card, folder, split, classes=card.classes)
    names = np.array([label or "" for label in labels])
    draw = np.random.default_rng(seed)
    of_class = []
    for name in card.classes:
        rows = draw.permutation(np.flatnonzero(names == name))[:images]
        if len(rows) < max(images, per_class):
            raise BadInput(f"class '{name}' has {len(rows)} images; give a smaller --images")
        of_class.append(rows)
    chosen = np.concatenate(of_class)
    scorer = open_scorer(str(folder), "cpu")
    first, second = np.triu_indices(len(chosen), 1)
    differences = scorer.differences(scorer.maps(pixels[chosen]), first, second)
    probability = scorer.probability(differences)
    assert probability is not None
    alike = names[chosen][first] == names[chosen][second]

    size = per_class * len(card.classes)
    among_class, among_all = per_class * (per_class - 1) // 2, size * (size - 1) // 2
    share = len(card.classes) * among_class / among_all
    right = np.zeros((len(chosen), len(chosen)), np.bool_)
    right[first, second] = right[second, first] = (probability >= 1 - share) == alike
    upper = np.triu_indices(size, 1)
    accuracies = []
    for _ in range(draws):
        rows = np.concatenate(
            [
                start + draw.permutation(images)[:per_class]
                for start in range(0, len(chosen), images)
            ]
        )
        accuracies.append(right[np.ix_(rows, rows)][upper].mean())
    right_alike, right_others = probability[alike] >= 0.5, probability[~alike] < 0.5
    low, high = np.quantile(accuracies, (0.025, 0.975))
    return {
        "pairs_in_a_set": among_all,
        "sets": draws,
        "accuracy": float(np.mean(accuracies)),
        "of_95_percent_of_sets": [float(low), float(high)],
        "never_alike": 1 - share,
        "balanced_accuracy": float((right_alike.mean() + right_others.mean()) / 2),
    }


def main() -> None:
    """Print the accuracy as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scorer", type=Path, help="folder of 'retr train layers'")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=40, help="images of each class to draw from")
    parser.add_argument("--per-class", type=int, default=4, help="images of each class in a set")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        found = measure(
            given.scorer, given.split, given.images, given.per_class, given.draws, given.seed
        )
    except RetrError as problem:
        raise SystemExit(str(problem)) from None
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

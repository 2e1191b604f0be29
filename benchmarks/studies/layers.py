"""Score pairs on small sets of new images: `python -m benchmarks.studies.layers --help`.

Such scorers are published with their accuracy over all 66 pairs of 12 images, four of each of three
classes. 18 of these pairs are alike, so that who never says so is right in 48 of 66, or 0.727. Here
as many such sets as are asked for are drawn among images that the scorer was not trained on. Its
probabilities are for as many alike pairs as others: where 18 are to 48, odds of 48 to 18 are even.
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
    """The mean accuracy over sets of `per_class` images a class, and what 95% of sets have.

    images: of each class, that the sets are drawn from. Raises BadInput where there are fewer.
    """
    card = Card.read(folder)
    pixels, _, labels = unseen(card, folder, split, classes=card.classes)
    names = np.array([label or "" for label in labels])
    draw = np.random.default_rng(seed)
    of_class = []
    for name in card.classes:
        rows = draw.permutation(np.flatnonzero(names == name))[:images]
        if len(rows) < max(images, per_class):
            raise BadInput(f"class '{name}' has {len(rows)} images; ask for fewer")
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
    parser.add_argument("scorer", type=Path, help="a folder that 'retr train layers' made")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=40, help="of each class, to draw from")
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

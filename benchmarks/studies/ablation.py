"""Measure the parts of an embedding: `python -m benchmarks.studies.ablation --help`.

A trained embedding is the network's output, averaged over views of an image (its mirror image; both
shifted; all at several sides, if the encoder has them), extended by the shares of the classes. The
same weights are evaluated with one part more in each row, on images that they were not trained on,
each left out of its own ranking.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.studies.unseen import unseen
from retrieval.contracts import Encoder, Json
from retrieval.errors import BadInput
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.registry import open_encoder
from retrieval.storage.cards import WEIGHTS, Card
from retrieval.storage.files import sha256_of

STEPS: dict[str, dict[str, Json]] = {
    "neck": {"mirror": False, "shift": 0, "class_sharpness": None},
    "mirror": {"mirror": True, "shift": 0, "class_sharpness": None},
    "mirror, shares": {"mirror": True, "shift": 0},
    "mirror, shift": {"mirror": True, "shift": 1, "class_sharpness": None},
    "mirror, shift, shares": {"mirror": True, "shift": 1},
}


def measure(folder: Path, split: str, limit: int) -> Iterator[dict[str, Json]]:
    """Yield a row for each step. Raises BadInput for an encoder without class proxies."""
    card = Card.read(folder)
    if card.network.get("class_sharpness") is None:
        raise BadInput(f"{folder} has no class proxies; train with network.class_sharpness")
    images, ids, labels = unseen(card, folder, split, limit)
    for step, settings in steps(card.network).items():
        with tempfile.TemporaryDirectory() as name:
            encoder = _variant(card, folder, settings, Path(name))
            started = time.perf_counter()
            vectors = encoder.encode(images)
            seconds = time.perf_counter() - started
        items = Labelled(vectors, ids, labels)
        result = evaluate(items, items, encoder.metric, (10,))
        yield {
            "embedding": step,
            "numbers": encoder.dim,
            "images": len(images),
            "map": result.map,
            "precision_at_10": result.precision_at[10],
            "knn_accuracy": result.knn_accuracy,
            "images_per_second": len(images) / seconds,
        }


def steps(network: Mapping[str, Json]) -> dict[str, dict[str, Json]]:
    """Return the settings of each row: at the training side, and in the last at all sides."""
    if not network.get("embed_sides"):
        return STEPS
    at_one = {step: {**settings, "embed_sides": []} for step, settings in STEPS.items()}
    last = [*STEPS][-1]
    return {**at_one, f"{last}, sides": STEPS[last]}


def _variant(card: Card, folder: Path, settings: dict[str, Json], place: Path) -> Encoder:
    """Return the encoder with other settings, in a new folder with the same weights."""
    weights = load_file(card.check_weights(folder))
    if "class_sharpness" in settings:
        del weights["proxies"]
    if card.network.get("itq"):  # a rotation changes no cosine
        settings = {**settings, "itq": False}
        del weights["rotation.axes"]
    save_file(weights, place / WEIGHTS)
    network = {**card.network, **settings}
    replace(card, network=network, weights_sha256=sha256_of(place / WEIGHTS)).write(place)
    return open_encoder(str(place), "cpu")


def main() -> None:
    """Print the rows as JSON, one per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of `retr train`")
    parser.add_argument("--split", default="train", help="train (held-out images) or test")
    parser.add_argument("--limit", type=int, default=10_000, help="maximum number of images")
    given = parser.parse_args()
    for row in measure(given.encoder, given.split, given.limit):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

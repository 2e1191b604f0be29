"""Measure the reconstruction of images: `python -m benchmarks.studies.reconstruction --help`.

The result is the mean squared error of pixels, from 0 to 1, of test images drawn from their
latents, and that of PCA with the same dimension, fitted on the training images.
"""

import argparse
import json
from typing import Any, cast

import numpy as np

from benchmarks.studies.baselines import components, pixels
from retrieval.contracts import Images, Json
from retrieval.errors import BadInput
from retrieval.images import load, open_source
from retrieval.registry import open_encoder


def measure(name: str, source: str, limit: int | None) -> dict[str, Json]:
    """Return both errors, and their ratio. Raises BadInput for an encoder that cannot draw."""
    encoder = cast(Any, open_encoder(name))
    if not hasattr(encoder, "reconstruct"):
        raise BadInput(f"{name} cannot draw images; name an autoencoder")
    test = open_source(source, "test", limit=limit)
    images: Images = np.stack([load(item, encoder.framing) for item in test.items()])
    drawn = encoder.reconstruct(images)
    error = float(np.square(drawn - images / np.float32(255)).mean())

    asked, _, _ = pixels(test, encoder.framing)
    known, _, _ = pixels(open_source(source, "train", limit=limit), encoder.framing)
    mean = known.mean(axis=0)
    axes = components(known - mean, encoder.dim)
    centred = asked - mean
    of_pca = float(np.square(centred - centred @ axes @ axes.T).mean())
    return {
        "encoder": encoder.name,
        "dim": encoder.dim,
        "images": len(images),
        "error": error,
        "pca_error": of_pca,
        "ratio": error / of_pca,
    }


def main() -> None:
    """Print the errors as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="autoencoder")
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--limit", type=int, help="the first N images of each split only")
    given = parser.parse_args()
    print(json.dumps(measure(given.encoder, given.source, given.limit), indent=2))


if __name__ == "__main__":
    main()

"""Images and folders of embeddings, made from random numbers."""

import json
from pathlib import Path

import numpy as np

from retrieval.contracts import Images, Metric, Vectors
from retrieval.storage.publishing import READY, STALE
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter

ENCODER = EncoderFacts("made", "a" * 64)
OTHER = EncoderFacts("made", "c" * 64)


def embeddings(
    folder: Path,
    vectors: Vectors,
    encoder: EncoderFacts = ENCODER,
    labels: list[str | None] | None = None,
    shard_rows: int | None = None,
) -> Embeddings:
    """Write vectors (n, dim) into a new folder of embeddings, and open it.

    Ids are the folder's name and a number. labels: "even" and "odd" in turn if None. shard_rows:
    rows of each shard; one shard if None.
    """
    shard_rows = shard_rows or len(vectors)
    facts = Facts(
        encoder=encoder,
        dim=vectors.shape[1],
        dtype=Dtype.FLOAT32,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts(folder.name, "b" * 64, len(vectors)),
        shard_images=shard_rows,
    )
    writer = ShardWriter(folder, facts)
    labels = labels or [("even", "odd")[i % 2] for i in range(len(vectors))]
    ids = [f"{folder.name}{i}" for i in range(len(vectors))]
    for start in range(0, len(vectors), shard_rows):
        rows = slice(start, start + shard_rows)
        shard = vectors[rows]
        writer.write(ids[rows], labels[rows], [None] * len(shard), shard)
    writer.finish()
    return open_embeddings(folder)


def unpublish(folder: Path) -> None:
    """Put an index folder into the state before the first rename of its publication."""
    files = [path for path in folder.iterdir() if path.is_file()]
    (folder / READY).mkdir()
    for path in files:
        path.rename(folder / READY / path.name)
    (folder / READY / STALE).write_text(json.dumps({"stale": []}))


def photographs(count: int, side: int) -> Images:
    """Return images (count, side, side, 3), smooth with noise, as photographs are."""
    rng = np.random.default_rng(1)
    across = np.linspace(0, 1, side)
    waves = rng.uniform(1, 9, (count, 3, 2)), rng.uniform(0, 6, (count, 1, 1, 3))
    x, y = across[None, :, None, None], across[None, None, :, None]
    frequencies = waves[0][:, None, None]
    images = 127 + 90 * np.sin(frequencies[..., 0] * x + frequencies[..., 1] * y + waves[1])
    noisy = images + rng.normal(0, 9, images.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)

"""Embeddings folders made from vectors, as if an encoder had been there."""

from pathlib import Path

from retrieval.contracts import Metric, Vectors
from retrieval.storage.shards import (
    Dtype,
    Embeddings,
    EncoderFacts,
    Facts,
    ShardWriter,
    SourceFacts,
    open_embeddings,
)

ENCODER = EncoderFacts("made", "a" * 64)
OTHER = EncoderFacts("made", "c" * 64)


def embeddings(folder: Path, vectors: Vectors, encoder: EncoderFacts = ENCODER) -> Embeddings:
    """The vectors in a new folder; rows are named after it, their labels even and odd in turn."""
    facts = Facts(
        encoder=encoder,
        dim=vectors.shape[1],
        dtype=Dtype.FLOAT32,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts(folder.name, "b" * 64, len(vectors)),
        shard_images=len(vectors),
    )
    writer = ShardWriter(folder, facts)
    labels: list[str | None] = [("even", "odd")[i % 2] for i in range(len(vectors))]
    ids = [f"{folder.name}{i}" for i in range(len(vectors))]
    writer.write(ids, labels, [None] * len(vectors), vectors)
    writer.finish()
    return open_embeddings(folder)

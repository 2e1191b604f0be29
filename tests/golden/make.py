"""Writes the golden folders of the current format version: `python tests/golden/make.py`.

They are committed once and never again made for the same version: whatever retr becomes, it
opens them, and tests/unit/test_golden.py says what it finds there.
"""

from pathlib import Path

import numpy as np

from retrieval.contracts import Metric
from retrieval.files import locked, made_folder
from retrieval.indexing import build_index
from retrieval.shards import (
    Dtype,
    EncoderFacts,
    Facts,
    ShardWriter,
    Skipped,
    SourceFacts,
    open_embeddings,
)

HERE = Path(__file__).parent
DIM = 4
ROWS = 6


def vectors() -> np.ndarray:
    """Row i holds i, i/2, -i/4 and 1: exact in float16."""
    i = np.arange(ROWS, dtype=np.float32)
    return np.stack((i, i / 2, -i / 4, np.ones_like(i)), axis=1)


def main() -> None:
    facts = Facts(
        encoder=EncoderFacts("golden", "0" * 64, {"version": 1}),
        dim=DIM,
        dtype=Dtype.FLOAT16,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts("golden/train", "1" * 64, ROWS + 1),
        shard_images=4,
    )
    folder = made_folder(HERE / "v1" / "embeddings")
    with locked(folder):
        writer = ShardWriter(folder, facts)
        labels = ["even" if i % 2 == 0 else None for i in range(ROWS)]
        for rows in (range(0, 4), range(4, ROWS)):
            writer.write(
                ids=[f"train/{i:05d}" for i in rows],
                labels=[labels[i] for i in rows],
                paths=[f"images/{i}.png" for i in rows],
                vectors=vectors()[rows.start : rows.stop],
                skipped=[Skipped("images/bad.png", "truncated")] if rows.start else [],
            )
        writer.finish()
    for backend in ("exact", "ivf", "hnsw"):
        build_index([open_embeddings(folder)], backend, HERE / "v1" / backend)


if __name__ == "__main__":
    main()

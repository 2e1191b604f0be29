"""A gallery of pictures that is encoded and indexed once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import open_embeddings

BACKENDS = ("exact", "hnsw", "ivf")


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of three labels, their toy embeddings, and an index of each backend."""

    folder: Path

    @property
    def images(self) -> Path:
        """images/{blue,green,red}/0.png to 19.png"""
        return self.folder / "images"

    @property
    def image(self) -> Path:
        """One of the images."""
        return self.images / "green" / "7.png"

    @property
    def embeddings(self) -> Path:
        """The embeddings folder."""
        return self.folder / "embeddings"

    def index(self, backend: str = "exact") -> Path:
        """The index folder of the backend."""
        return self.folder / backend

    def read(self) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
        """The rows (id, label, path) and vectors (60, 3)."""
        rows, vectors = open_embeddings(self.embeddings).read()
        return rows.to_pylist(), vectors

"""Text queries with what is relevant to them, from a CSV file; and their vectors."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Metric, Prompts, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.query import checked_texts
from retrieval.errors import BadInput
from retrieval.labels import as_labels
from retrieval.quality.labelled import Labelled
from retrieval.storage.names import nfc
from retrieval.storage.sets.manifest import EncoderFacts

TEXT, LABEL, ID = "text", "label", "id"
MAX_FIELD = 10_000_000  # characters; Python's own limit is 131,072

ENDINGS = (".csv",)  # endings of files of texts; other names are folders of embeddings

Embed = Callable[[Sequence[str]], Vectors]
"""Returns the vectors (n, dim) of n texts."""


@dataclass(frozen=True, slots=True)
class TextQueries:
    """Texts, each with the label or the image id that is relevant to it.

    by: `label`, if images with the label are relevant; `id`, if one image is; empty if that is
    not known.
    """

    name: str
    by: str
    texts: list[str]
    relevant: list[str]

    @classmethod
    def read(cls, path: Path, needs_relevant: bool = True) -> Self:
        """Read a CSV file in UTF-8 with the columns `text,label` or `text,id`.

        Other columns are ignored. needs_relevant: False if `text` alone is enough. Raises BadInput
        for another file, and for an empty text.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                csv.field_size_limit(MAX_FIELD)
                rows = [*csv.DictReader(file, strict=True)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BadInput(
                f"cannot read {path} ({reason}); give a CSV file in UTF-8 with the columns "
                f"{TEXT},{LABEL} or {TEXT},{ID}"
            ) from None
        columns = [name for name in rows[0] if name is not None] if rows else []
        known = [by for by in (LABEL, ID) if by in columns]
        if TEXT not in columns or len(known) > 1 or (needs_relevant and not known):
            met = f"the columns {', '.join(columns)}" if columns else "no rows"
            raise BadInput(f"{path} has {met}; give it {TEXT},{LABEL} or {TEXT},{ID}, and rows")
        by = known[0] if known else ""
        texts, relevant = [], []
        for line, row in enumerate(rows, start=2):
            for name in (TEXT, by):
                if name and not (row[name] or "").strip():
                    raise BadInput(f"{path}: row {line} has no {name}; fill it in")
            texts.append(row[TEXT])
            relevant.append(nfc(row[by]) if by else "")
        return cls(path.name, by, checked_texts(texts), relevant)

    @property
    def ids(self) -> list[str]:
        """An id for each text: the file's name, and the text's number from 1."""
        return [f"{self.name}: {number}" for number in range(1, len(self.texts) + 1)]

    def labelled(self, vectors: Vectors) -> Labelled:
        """Return the texts with their vectors (n, dim) as queries; without labels if by id."""
        labels = self.relevant if self.by == LABEL else [None] * len(self.texts)
        return Labelled(vectors, self.ids, as_labels(labels))

    def by_label(self) -> dict[str, list[int]]:
        """Return the positions of each label's texts, in the order of their first text."""
        found: dict[str, list[int]] = {}
        for position, label in enumerate(self.relevant):
            found.setdefault(label, []).append(position)
        return found


def is_texts(name: str) -> bool:
    """Return whether the name is that of a file of texts, not of a folder of embeddings."""
    return Path(name).suffix.lower() in ENDINGS


def text_queries(file: str | Path, encoder: EncoderFacts, device: str = "auto") -> Labelled:
    """Return the texts of a CSV file as queries, embedded by the encoder of a database.

    The file needs the column `text` only. Raises the errors of `TextQueries.read`, and BadInput
    for an encoder that takes no text.
    """
    asked = TextQueries.read(Path(file), needs_relevant=False)
    return asked.labelled(Embedder(encoder, device, owner="the database").embed_texts(asked.texts))


def in_templates(
    texts: Sequence[str], prompts: Prompts, embed: Embed, metric: Metric | str
) -> Vectors:
    """Return the mean vector (n, dim) of each text in all templates.

    For the cosine distance, each vector has unit length before, and the mean has it after: Radford
    et al., arXiv:2103.00020, section 3.1.4.
    """
    metric = choice(Metric, metric)
    whole = [
        template.replace("{}", text)
        for text in checked_texts(texts)
        for template in prompts.templates
    ]
    vectors = embed(whole)
    shape = len(texts), len(prompts.templates), vectors.shape[1]
    means = np.mean(units(vectors, metric).reshape(shape), axis=1)
    return units(means, metric)


def units(vectors: Vectors, metric: Metric | str) -> Vectors:
    """Return the vectors (n, dim) with unit length if the metric is cosine, else as they are."""
    if choice(Metric, metric) is not Metric.COSINE:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), np.float32)

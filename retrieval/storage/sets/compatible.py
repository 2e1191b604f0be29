"""Check that sets of embeddings belong together, and read them as one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from retrieval.contracts import (
    Vectors,
)
from retrieval.errors import BadInput, Mismatch
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import EncoderFacts
from retrieval.storage.tables import check_unique


def common_facts(sets: Sequence[Embeddings]) -> EncoderFacts:
    """Return the encoder that made all sets. Raises Mismatch if there are several."""
    if not sets:
        raise BadInput("there is nothing to index; name an embeddings folder")
    first = sets[0]
    for other in sets[1:]:
        check_same_encoder(
            first.facts.encoder, other.facts.encoder, str(first.folder), str(other.folder)
        )
        if first.facts.dim != other.facts.dim:
            raise Mismatch(
                f"{first.folder} has {first.facts.dim} dimensions and {other.folder} has "
                f"{other.facts.dim}; encode one of them again"
            )
    return first.facts.encoder


def check_same_encoder(a: EncoderFacts, b: EncoderFacts, where_a: str, where_b: str) -> None:
    """Raise Mismatch, naming both encoders, unless they are the same."""
    if a.fingerprint != b.fingerprint:
        raise Mismatch(
            f"{where_a} was made by encoder {_named(a)} and {where_b} by {_named(b)}: their "
            "distances have no meaning; encode one of them again with the other's encoder"
        )


def read_all(sets: Sequence[Embeddings]) -> tuple[pa.Table, Vectors]:
    """Return the rows (id, label, path) and vectors (n, dim) of all sets. Raises BadData."""
    if len(sets) == 1:
        return sets[0].read()
    tables, vectors = zip(*(each.read() for each in sets), strict=True)
    return joined_rows(tables, sets), np.concatenate(vectors)


def joined_rows(tables: Sequence[pa.Table], sets: Sequence[Embeddings]) -> pa.Table:
    """Return the rows of all sets, one after the other.

    Raises BadData for a duplicate id.
    """
    if len(tables) == 1:
        return tables[0]
    rows = pa.concat_tables(tables)
    check_unique(rows["id"], " and ".join(str(each.folder) for each in sets))
    return rows


def with_unique_ids(sets: Sequence[Embeddings]) -> list[Embeddings]:
    """Return the sets with ids that tell their images apart.

    If sets of different sources share ids, all ids begin with the name of their source's folder:
    `phone/IMG_1.jpg`.
    """
    if len({each.facts.source.name for each in sets}) < len(sets) or len(sets) < 2:
        return [*sets]
    ids = [each.ids() for each in sets]
    together = pa.chunked_array([chunk for each in ids for chunk in each.chunks], pa.string())
    if len(together.unique()) == len(together):
        return [*sets]
    names = source_names(sets)
    return [replace(each, prefix=f"{name}/") for each, name in zip(sets, names, strict=True)]


def source_names(sets: Sequence[Embeddings]) -> list[str]:
    """Return the end of each source's name, of as few folders as tell the sources apart."""
    names = [each.facts.source.name.strip("/").split("/") for each in sets]
    length = 1
    while len({(*name[-length:],) for name in names}) < len({(*name,) for name in names}):
        length += 1
    return ["/".join(name[-length:]) for name in names]


def _named(encoder: EncoderFacts) -> str:
    return f"{encoder.name} ({encoder.fingerprint[:8]})"

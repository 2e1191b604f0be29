"""Sources that have columns for their images beside the label."""

from typing import Protocol, runtime_checkable

from retrieval.images.folders.listing import listed
from retrieval.images.source import First, Source
from retrieval.storage.sets.columns import FurtherColumns


@runtime_checkable
class Described(Protocol):
    """A source that may have further columns."""

    @property
    def columns_fingerprint(self) -> str | None:
        """Return what changes when the further columns do; None if there are none."""

    def further_columns(self) -> FurtherColumns | None:
        """Read the further columns. Raises BadSource for tables that cannot be read."""


def has_same_columns(source: Source, known: str | None) -> bool:
    """Return whether the further columns that are known are still those of the source.

    known: their fingerprint; None if there are none. A table of images for which no columns were
    chosen keeps what is known.
    """
    found = described(source)
    if found is None:
        return known is None or listed(source) is None
    return found.columns_fingerprint == known


def described(source: Source) -> Described | None:
    """Return the source, or the source of a `First`, if it has further columns; else None."""
    whole = source.source if isinstance(source, First) else source
    is_described = isinstance(whole, Described) and whole.columns_fingerprint is not None
    return whole if is_described and isinstance(whole, Described) else None

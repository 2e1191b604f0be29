"""Columns that the user chose."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that the user chose. None: find one by name and type. An empty label: no labels.

    others: further columns, for filters.
    """

    image: str | None = None
    label: str | None = None
    others: tuple[str, ...] = ()


NO_CHOICE = Columns()

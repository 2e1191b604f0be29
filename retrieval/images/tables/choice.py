"""Columns that the user chose."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that the user chose. None: find one by name and type. An empty label: no labels."""

    image: str | None = None
    label: str | None = None


NO_CHOICE = Columns()

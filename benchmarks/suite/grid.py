"""Grids: the options of each backend that are measured."""

import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput, UnknownName
from retrieval.registry import indexer_names

Setting = Mapping[str, object]
"""Options of a backend; those not named have their default."""

Grid = Mapping[str, Sequence[Setting]]
"""The settings of each backend."""

QUICK, FULL = (Path(__file__).parent / "grids" / f"{name}.toml" for name in ("quick", "full"))


def read_grid(path: Path = QUICK) -> Grid:
    """Return the settings of each backend in the TOML file: all combinations of its values.

    Raises BadInput for a file that is missing or not a grid, UnknownName for a backend. Options are
    checked later, when the indexers are made.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise BadInput(f"cannot read grid {path} ({problem.strerror}); name another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BadInput(f"grid {path} is not TOML ({problem}); correct it") from None
    for backend in tables:
        if backend not in indexer_names():
            raise UnknownName(f"backend in grid {path}", backend, indexer_names())
    return {backend: _settings(path, backend, table) for backend, table in tables.items()}


def _settings(path: Path, backend: str, table: Any) -> list[Setting]:
    if not isinstance(table, dict):
        raise BadInput(
            f"grid {path}: {backend} is not a table; write [{backend}], then its options"
        )
    if "metric" in table:
        raise BadInput(
            f"grid {path}: {backend} has a metric; use --metric, which applies to all backends"
        )
    values = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
    for option, choices in values.items():
        if not choices:
            raise BadInput(f"grid {path}: {backend} has no value for {option}; name one or more")
    return [dict(zip(table, choice, strict=True)) for choice in product(*values.values())]


def named(setting: Mapping[str, object]) -> str:
    """Return a setting as text for people: `n_lists=30 n_probe=1`."""
    return " ".join(f"{name}={value}" for name, value in setting.items())

"""Grids: which options of which backend are measured."""

import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput

Setting = Mapping[str, object]
"""Options of a backend; those not named have their default."""

Grid = Mapping[str, Sequence[Setting]]
"""The settings of each backend."""

QUICK, FULL = (Path(__file__).parent / "grids" / f"{name}.toml" for name in ("quick", "full"))


def read_grid(path: Path = QUICK) -> Grid:
    """The settings of each backend in the TOML file: all combinations of its lists' values.

    Raises BadInput where the file is not there or not a grid.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise BadInput(f"cannot read grid {path} ({problem.strerror}); name another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise BadInput(f"grid {path} is no TOML ({problem}); correct it") from None
    return {backend: _settings(path, backend, table) for backend, table in tables.items()}


def _settings(path: Path, backend: str, table: Any) -> list[Setting]:
    if not isinstance(table, dict):
        raise BadInput(f"grid {path}: {backend} is no table; write [{backend}], then its options")
    values = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, choice, strict=True)) for choice in product(*values)]

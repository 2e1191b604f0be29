"""Manifests and index facts with wrong values: they are refused, or change nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import open_embeddings, open_index
from retrieval.errors import BadInput
from retrieval.storage.files import sealed
from tests.cli.damage import Copied
from tests.cli.gallery import Gallery


def test_wrong_manifest_value_is_refused_or_has_no_effect(gallery: Gallery, copied: Copied) -> None:
    """Change each field to wrong values. The folder is refused, or read as before."""
    folder = copied(gallery.embeddings)
    _, vectors = gallery.read()

    def read() -> None:
        embeddings = open_embeddings(folder)
        np.testing.assert_array_equal(embeddings.vectors(), vectors)
        assert len(embeddings) == 60, len(embeddings)

    check_changes(folder / "manifest.json", read)


@pytest.mark.parametrize("backend", ["exact", "hnsw", "ivf"])
def test_wrong_index_json_value_is_refused_or_has_no_effect(
    gallery: Gallery, copied: Copied, backend: str
) -> None:
    """Change each field to wrong values. The index is refused, or searched as before."""
    folder = copied(gallery.index(backend))
    _, vectors = gallery.read()

    def read() -> None:
        opened = open_index(folder)
        hits = opened.index.search(vectors[:5], 1)
        assert hits.rows[:, 0].tolist() == [0, 1, 2, 3, 4], hits.rows

    check_changes(folder / "index.json", read)


WRONG: list[Any] = [None, True, -1, 0, 10**30, 1.5, "x", "../x", [], ["x"], [[]], {}, {"x": 1}]


def check_changes(path: Path, read: Callable[[], None]) -> None:
    """Replace every value of the JSON document by wrong values, and remove it."""
    whole = json.loads(path.read_text())
    astray: list[str] = []
    for place in places(whole):
        for wrong in [*WRONG, KeyError]:
            path.write_text(json.dumps(sealed(changed(whole, place, wrong))))
            try:
                read()
            except BadInput as error:
                assert len(str(error).splitlines()) == 1
            except Exception as error:
                astray.append(f"{'.'.join(map(str, place))} = {wrong!r}: {error!r}")
    assert not astray, "\n".join(astray)
    path.write_text(json.dumps(sealed(whole)))
    read()


def places(document: Any) -> list[tuple[str | int, ...]]:
    """Return the keys of each value in the document, at any depth."""
    if isinstance(document, dict):
        entries: list[tuple[str | int, Any]] = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))
    else:
        return []
    found: list[tuple[str | int, ...]] = []
    for key, value in entries:
        found += [(key,), *((key, *rest) for rest in places(value))]
    return found


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of the document with another value, or without it for KeyError."""
    copy = json.loads(json.dumps(document))
    target = copy
    for key in place[:-1]:
        target = target[key]
    if value is KeyError:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return copy

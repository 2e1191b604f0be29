"""Manifests and index facts with wrong values: they are refused, or change nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Gallery
from damage import Copied

from retrieval import open_embeddings, open_index
from retrieval.errors import BadInput
from retrieval.storage.files import sealed


def test_no_value_in_a_manifest_leads_astray(gallery: Gallery, copied: Copied) -> None:
    """Whatever a field is changed to: the folder is refused, or read as it was."""
    folder = copied(gallery.embeddings)
    _, vectors = gallery.read()

    def read() -> None:
        embeddings = open_embeddings(folder)
        np.testing.assert_array_equal(embeddings.vectors(), vectors)
        assert len(embeddings) == 60, len(embeddings)

    check_changes(folder / "manifest.json", read)


@pytest.mark.parametrize("backend", ["exact", "hnsw", "ivf"])
def test_no_value_in_an_index_json_leads_astray(
    gallery: Gallery, copied: Copied, backend: str
) -> None:
    """Whatever a field is changed to: the index is refused, or searched as it was."""
    folder = copied(gallery.index(backend))
    _, vectors = gallery.read()

    def read() -> None:
        opened = open_index(folder)
        hits = opened.index.search(vectors[:5], 1)
        assert hits.rows[:, 0].tolist() == [0, 1, 2, 3, 4], hits.rows

    check_changes(folder / "index.json", read)


WRONG: list[Any] = [None, True, -1, 0, 10**30, 1.5, "x", "../x", [], ["x"], [[]], {}, {"x": 1}]


def check_changes(path: Path, read: Callable[[], None]) -> None:
    """Put wrong values in the place of every value of the JSON document, and leave it out."""
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
    """The keys that lead to each value in the document, at whatever depth."""
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
    """A copy of the document with the value in that place; KeyError: with nothing there."""
    copy = json.loads(json.dumps(document))
    target = copy
    for key in place[:-1]:
        target = target[key]
    if value is KeyError:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return copy

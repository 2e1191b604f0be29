"""List what a workspace holds, and find what nothing refers to any more."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrieval.contracts import Json
from retrieval.errors import BadInput
from retrieval.images.reading import is_gone
from retrieval.index.folder import IndexFacts, is_index
from retrieval.storage.files import PARTIAL, locked
from retrieval.storage.names import restored
from retrieval.storage.sets.manifest import MANIFEST, Manifest
from retrieval.workspace import Role, Workspace


@dataclass(frozen=True, slots=True)
class Entry:
    """Embeddings or an index in a workspace.

    source: of the images. made_with: the encoder of embeddings, or the backend of an index. note:
    what a user should know, such as that the images are gone; empty if there is nothing.
    """

    kind: str
    folder: Path
    source: str
    made_with: str
    rows: int
    n_bytes: int
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return the entry as `retr list --json` prints it."""
        return {
            "kind": self.kind,
            "folder": str(self.folder),
            "source": self.source,
            "made_with": self.made_with,
            "rows": self.rows,
            "size_bytes": self.n_bytes,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder that nothing refers to, and why."""

    folder: Path
    reason: str
    n_bytes: int

    def to_json(self) -> dict[str, Json]:
        """Return the leftover as `retr prune --json` prints it."""
        return {"folder": str(self.folder), "reason": self.reason, "size_bytes": self.n_bytes}


def entries(workspace: Workspace) -> list[Entry]:
    """Return the embeddings of the workspace, each followed by its indices; by name."""
    found = []
    for folder in _folders(workspace, "embeddings"):
        embeddings = _embeddings(folder)
        found.append(embeddings)
        indices = _folders(workspace, "indices")
        found += [_index(i, embeddings.source) for i in indices if _is_index_of(i, folder)]
    there = {entry.folder for entry in found}
    others = [each for each in _folders(workspace, "indices") if each not in there]
    return found + [_index(each, "") for each in others]


def leftovers(workspace: Workspace) -> list[Leftover]:
    """Return the folders of the workspace that can be deleted: nothing refers to them.

    These are indices whose embeddings were deleted, folders without embeddings or an index in them,
    and files of runs that were killed and will not be continued. The folders that commands use next
    are never among them.
    """
    used = {workspace.latest(role) for role in Role}
    sets = _folders(workspace, "embeddings")
    found = [
        Leftover(folder, "no embeddings in it", _size(folder))
        for folder in sets
        if not (folder / MANIFEST).exists()
    ]
    for folder in _folders(workspace, "indices"):
        if folder.resolve() in used:
            continue
        if not _holds_index(folder):
            found.append(Leftover(folder, "no index in it", _size(folder)))
        elif not any(_is_index_of(folder, each) for each in sets):
            found.append(Leftover(folder, "its embeddings were deleted", _size(folder)))
        found += [
            Leftover(partial, "left by a build that was killed", _size(partial))
            for partial in folder.glob(f"*{PARTIAL}")
        ]
    return found


def prune(workspace: Workspace) -> list[Leftover]:
    """Delete what `leftovers` returns, and return it. Raises Busy if a process writes there."""
    found = leftovers(workspace)
    for each in found:
        home = each.folder.parent if each.folder.name.endswith(PARTIAL) else each.folder
        with locked(home):
            shutil.rmtree(each.folder, ignore_errors=True)
    return found


def _folders(workspace: Workspace, kind: str) -> list[Path]:
    return sorted(each for each in workspace.folder.glob(f"{kind}/*") if each.is_dir())


def _is_index_of(index: Path, embeddings: Path) -> bool:
    """Return whether the name of the index is one that `Workspace.index_folder` gives."""
    return index.name.startswith(f"{embeddings.name}-")


def _holds_index(folder: Path) -> bool:
    try:
        return is_index(folder)
    except BadInput:
        return True  # it cannot be finished here, which another command reports


def _embeddings(folder: Path) -> Entry:
    try:
        manifest = Manifest.read(folder)
    except BadInput as error:
        return Entry("embeddings", folder, "", "", 0, _size(folder), str(error))
    facts = manifest.facts
    note = "" if manifest.complete else "not complete; run the same 'retr encode' again"
    if facts.source.root is not None and is_gone(restored(facts.source.root)):
        note = "its images are gone; if they were moved, run 'retr relocate'"
    source = restored(facts.source.name)
    size = _size(folder)
    return Entry("embeddings", folder, source, facts.encoder.name, manifest.rows, size, note)


def _index(folder: Path, source: str) -> Entry:
    try:
        facts = IndexFacts.read(folder)
    except BadInput as error:
        return Entry("index", folder, source, "", 0, _size(folder), str(error))
    note = "" if source else "its embeddings were deleted"
    return Entry("index", folder, source, facts.backend, facts.rows, _size(folder), note)


def _size(folder: Path) -> int:
    """Return the size in bytes of all files below the folder."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.stat().st_size

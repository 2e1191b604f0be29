"""The workspace: the folder in which commands write results and find those of earlier commands.

`.retr/` in the current folder (or `RETR_WORKSPACE`, or `--workspace`) holds `embeddings/`,
`indices/` and `latest.json`, which names the newest folder in each role.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from retrieval.choices import choice
from retrieval.contracts import Encoder
from retrieval.errors import BadInput
from retrieval.images import Source
from retrieval.images.folders.listing import listed
from retrieval.images.source import First, text
from retrieval.storage.files import made_folder, read_json, write_json
from retrieval.storage.places import Place, RemotePath, place_of
from retrieval.storage.sets.manifest import MANIFEST, Dtype, EncoderFacts, Manifest

LATEST = "latest.json"


class Role(StrEnum):
    """Purpose of a folder: a test split holds queries, every other set is a database."""

    EMBEDDINGS = "embeddings"  # of either kind
    DATABASE = "database"
    QUERIES = "queries"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of results."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> "Workspace":
        """Return the workspace of `--workspace`, else of RETR_WORKSPACE, else `.retr`."""
        return cls(folder or Path(os.environ.get("RETR_WORKSPACE") or ".retr"))

    @classmethod
    def of_collection(cls, folder: Path | None, root: Path | None) -> "Workspace":
        """Return the workspace for a collection: as `at`, if it exists, else in the user's data.

        root: the folder of the images. Nothing is written below it.
        """
        chosen = cls.at(folder)
        is_named = folder is not None or bool(os.environ.get("RETR_WORKSPACE"))
        inside = root is not None and chosen.folder.resolve().is_relative_to(root)
        if is_named or (chosen.folder.is_dir() and not inside):
            return chosen
        return cls(user_data())

    def embeddings_of(self, source: Source, encoder: str | None = None) -> Path | None:
        """Return the newest folder of embeddings of the source; None if there is none.

        encoder: the encoder's name; None for any.
        """
        found = []
        for path in self.folder.glob(f"embeddings/*/{MANIFEST}"):
            try:
                facts = Manifest.read(path.parent).facts
            except BadInput:
                continue  # damaged; `retr encode` reports it
            is_part = facts.source.first_of is not None
            if (facts.source.name, is_part) != (text(source.name), isinstance(source, First)):
                continue
            if encoder is None or _names(encoder, facts.encoder.name):
                found.append((path.stat().st_mtime_ns, path.parent))
        return max(found)[1] if found else None

    def embeddings_folder(self, source: Source, encoder: Encoder, dtype: Dtype | str) -> Path:
        """Return the folder for embeddings of this source by this encoder.

        A source of files has the same folder when its files have changed.
        """
        dtype = choice(Dtype, dtype)
        names = (_slug("/".join(source.name.split("/")[-2:])), _slug(encoder.name))

        def folder(source_key: str) -> Path:
            run = f"{source_key} {encoder.fingerprint} {dtype}"
            key = hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            return self.folder / "embeddings" / "-".join((*names, key))

        earlier = folder(source.fingerprint)
        if listed(source) is None or earlier.is_dir():  # versions up to 2 had no others
            return earlier
        limit = source.limit if isinstance(source, First) else None
        return folder(f"files of {source.name} {limit}")

    def index_folder(self, embeddings: Place, backend: str, metric: str) -> Path:
        """Return the folder for the index of this backend over these embeddings."""
        return self.folder / "indices" / f"{embeddings.resolve().name}-{backend}-{_slug(metric)}"

    def encoder_folder(self, recipe: str) -> Path:
        """Return the folder for the encoder that this recipe trains."""
        return self.folder / "encoders" / _slug(Path(recipe).stem)

    def calibrations_folder(self, encoder: EncoderFacts) -> Path:
        """Return the folder for calibrations of this encoder's distances."""
        return self.folder / "calibrations" / encoder.fingerprint[:16]

    def remember(self, role: Role | str, folder: Place) -> None:
        """Make `folder` the newest in its role."""
        role = choice(Role, role)
        made_folder(self.folder)
        latest = self.folder / LATEST
        state = read_json(latest) if latest.exists() else {}
        write_json(latest, state | {str(role): str(folder.resolve())})

    def latest(self, role: Role | str) -> Place | None:
        """Return the newest folder in the role that still exists; of one in a store that is not
        asked.
        """
        role = choice(Role, role)
        path = self.folder / LATEST
        name = read_json(path).get(role) if path.exists() else None
        if not isinstance(name, str):
            return None
        found = place_of(name)
        return found if isinstance(found, RemotePath) or found.is_dir() else None

    def needed(self, role: Role | str, command: str, option: str) -> Place:
        """Return the newest folder in the role.

        Raises BadInput, which names the command that makes one, if there is none.
        """
        role = choice(Role, role)
        found = self.latest(role)
        if found is None:
            raise BadInput(
                f"there is no {role} in the workspace {self.folder}; "
                f"run '{command}' first, or name one with {option}"
            )
        return found


def _names(given: str, encoder: str) -> bool:
    """Return whether the given name is the encoder's, maybe without its tag and revision."""
    return given == encoder or encoder.startswith((f"{given}@", f"{given}#"))


def user_data() -> Path:
    """Return the user's folder of collections that are in no workspace. It may not exist."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "retr"


def workspaces(workspace: Workspace) -> list[Workspace]:
    """Return the workspace, and the user's collections unless they are the same."""
    others = Workspace(user_data())
    same = others.folder.resolve() == workspace.folder.resolve()
    return [workspace] if same else [workspace, others]


def _slug(text: str) -> str:
    """Return the text with all but letters, digits, dots and dashes turned into dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "images"

"""The indices that are served, by name."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Event, Thread

from retrieval.contracts import Encoder
from retrieval.embedding.embed import Embedder
from retrieval.errors import BadInput, RetrError, UnknownName
from retrieval.index.folder import IndexFacts, OpenIndex, is_index, open_index
from retrieval.index.searching import Searcher
from retrieval.serving.encoding import Encoding
from retrieval.serving.served import Served, version_of
from retrieval.storage.places import Place

WATCH_SECONDS = 2.0

log = logging.getLogger(__name__)


class Collection:
    """All indices that are served, by name."""

    def __init__(
        self,
        folders: Sequence[Place],
        embeddings: Sequence[Place] = (),
        device: str = "auto",
        images: Sequence[str] = (),
        open_folder: Callable[[Place], OpenIndex] = open_index,
    ) -> None:
        """Open the index folders. embeddings: folders that they may have been built from.
        images: as for `Served`. open_folder: opens an index.

        Raises the errors of `open_index`.
        """
        if not folders:
            raise BadInput("there is no index to serve; name one with --index")
        self.served: dict[str, Served] = {}
        self.ready = Event()
        """Set when the encoders are open, or have been found not to open."""
        self._encodings: dict[str, Encoding] = {}
        """By the encoder's fingerprint: indices of one encoder share it."""
        self._device = device
        self._embeddings = embeddings
        self._images = images
        self._open_folder = open_folder
        self._folders: dict[str, Place] = {}
        for name, folder in zip(free_names(folders), folders, strict=True):
            self._folders[name] = folder
            self.served[name] = self._opened(name)

    def _opened(self, name: str) -> Served:
        """Open the index of this name. Raises the errors of `open_index`."""
        folder = self._folders[name]
        IndexFacts.read(folder)  # finishes an interrupted publication
        version = version_of(folder)  # if the index changes from here on, `refresh` opens it again
        opened = self._open_folder(folder)
        wanted = opened.facts.encoder
        encoding = self._encodings.setdefault(
            wanted.fingerprint, Encoding(Embedder(wanted, self._device, owner=str(folder)))
        )
        searcher = Searcher(opened, encoding.embedder)
        return Served(name, searcher, encoding, self._embeddings, self._images, version)

    def refresh(self) -> list[str]:
        """Open indices that have changed on disk, and return their names.

        Searches that are running end with the old index. An index that cannot be opened is logged,
        and the old one is kept.
        """
        changed = []
        for name, served in list(self.served.items()):
            try:
                is_index(self._folders[name])  # finishes an interrupted publication
                if version_of(self._folders[name]) == served.version:
                    continue
                new = self._opened(name)
                new.vectors()
                if self.ready.is_set():
                    _encoders([new.encoding])
            except (RetrError, OSError):
                log.warning("cannot open the new version of index %s", name, exc_info=True)
                continue
            self.served[name] = new
            changed.append(name)
        return changed

    def watch(self, seconds: float = WATCH_SECONDS) -> None:
        """Refresh again and again, in a thread that ends with the process."""

        def run() -> None:
            while True:
                time.sleep(seconds)
                for name in self.refresh():
                    log.info("index %s has changed", name)

        Thread(target=run, name="watch", daemon=True).start()

    def __getitem__(self, name: str | None) -> Served:
        """Return the index of this name, the first for None. Raises UnknownName."""
        if name is None or name == "":
            return next(iter(self.served.values()))
        if name not in self.served:
            raise UnknownName("index", name, self.served)
        return self.served[name]

    def open_encoders(self) -> list[Encoder]:
        """Open each encoder once and read the embeddings, so that the first search need not wait.

        Log an encoder that does not open: each search that needs it says why.
        """
        try:
            opened = _encoders(self._encodings.values())
            for served in self.served.values():
                served.vectors()
        finally:
            self.ready.set()
        return opened


def _encoders(encodings: Iterable[Encoding]) -> list[Encoder]:
    """Return the encoders that open. Log those that do not."""
    opened = []
    for encoding in encodings:
        try:
            opened.append(encoding.open())
        except Exception:  # any error of torch, a model hub or a plug-in
            log.warning("an encoder does not open", exc_info=True)
    return opened


def free_names(folders: Iterable[Place]) -> list[str]:
    """Return the name of each folder, followed by a number if an earlier one has it."""
    names: list[str] = []
    for folder in folders:
        name = free = folder.resolve().name
        number = 2
        while free in names:
            free, number = f"{name}-{number}", number + 1
        names.append(free)
    return names

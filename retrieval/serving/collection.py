"""The indices that are served, by name."""

import logging
from collections.abc import Mapping, Sequence
from threading import Event

from retrieval.contracts import Encoder
from retrieval.embedding.embed import Embedder
from retrieval.errors import BadInput, UnknownName
from retrieval.index.folder import open_index
from retrieval.index.searching import Searcher
from retrieval.serving.served import Served
from retrieval.storage.places import Place

log = logging.getLogger(__name__)


class Collection:
    """All indices that are served, by name."""

    def __init__(
        self,
        folders: Sequence[Place],
        embeddings: Sequence[Place] = (),
        device: str = "auto",
        images: Sequence[str] = (),
    ) -> None:
        """Open the index folders. embeddings: folders that they may have been built from.
        images: as for `Served`.

        Raises the errors of `open_index`.
        """
        if not folders:
            raise BadInput("there is no index to serve; name one with --index")
        self.served: dict[str, Served] = {}
        self.ready = Event()
        """Set when the encoders are open, or have been found not to open."""
        self._embedders: dict[str, Embedder] = {}
        """By the encoder's fingerprint: indices of one encoder share it."""
        for folder in folders:
            opened = open_index(folder)
            wanted = opened.facts.encoder
            embedder = self._embedders.setdefault(
                wanted.fingerprint, Embedder(wanted, device, owner=str(folder))
            )
            name = _free_name(folder.resolve().name, self.served)
            self.served[name] = Served(name, Searcher(opened, embedder), embeddings, images)

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
        opened = []
        try:
            for embedder in self._embedders.values():
                try:
                    opened.append(embedder.encoder)
                except Exception:  # any error of torch, a model hub or a plug-in
                    log.warning("an encoder does not open", exc_info=True)
            for served in self.served.values():
                served.vectors()
        finally:
            self.ready.set()
        return opened


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    """Return the name, followed by a number if it is taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free

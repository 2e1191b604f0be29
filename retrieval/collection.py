"""A collection: a folder of images, whose embeddings and index are kept up to date."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.contracts import Encoder
from retrieval.embedding.embed import checked_words
from retrieval.images import Source
from retrieval.images.described import has_same_columns
from retrieval.images.source import Note, no_note
from retrieval.index.folder import IndexFacts, is_index
from retrieval.storage.places import Place
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.sets.manifest import VERSION, Dtype, Manifest
from retrieval.workspace import Workspace

if TYPE_CHECKING:
    from retrieval.embedding.encode import Outcome

MAX_EXACT_ROWS = 20_000
"""Rows up to which the index is exact. A query over 50,000 × 128 took 3 ms in `make demo`."""
BACKEND = "hnsw"


@dataclass(frozen=True, slots=True)
class EncodedCollection:
    """Embeddings of a folder of images, up to date.

    outcome: what was encoded; None if nothing had changed. encoder: None unless it was opened.
    """

    embeddings: Embeddings
    outcome: "Outcome | None" = None
    encoder: Encoder | None = None


def encoded_collection(
    source: Source,
    workspace: Workspace,
    encoder: str | None = None,
    device: str = "auto",
    note: Note = no_note,
    progress: Callable[[int, int], None] = lambda done, total: None,
    words: bool = False,
) -> EncodedCollection:
    """Return the embeddings of the images of `source`, after encoding what changed.

    encoder: name of the encoder; None for that of the collection, or else the default. The encoder
    is not opened if no file has changed. note: is called with a sentence about the default encoder.
    words: whether the collection is for searches in words.

    Raises the errors of `bring_up_to_date` and `open_encoder`; TakesNoWords, before anything is
    encoded, for an encoder that takes none.
    """
    folder = workspace.embeddings_of(source, encoder)
    outcome = opened = None
    if folder is None or not _is_current(folder, source):
        # A search of files that have not changed does not wait for these.
        from retrieval.embedding.default_encoder import encoder_for
        from retrieval.embedding.encode import bring_up_to_date
        from retrieval.embedding.runtimes.choice import RunBy

        opened = encoder_for(source, encoder, folder, device, note, words)
        if words:
            checked_words(opened)
        folder = workspace.embeddings_folder(source, opened, Dtype.FLOAT32)
        run_by = RunBy(note=note)
        outcome = bring_up_to_date(source, opened, folder, progress=progress, run_by=run_by)
    return EncodedCollection(open_embeddings(folder), outcome, opened)


def _is_current(folder: Place, source: Source) -> bool:
    """Return whether the embeddings are those of the present files, and know their columns."""
    manifest = Manifest.read(folder)
    return (
        manifest.complete
        and manifest.facts.source.fingerprint == source.fingerprint
        and (manifest.version == VERSION or not manifest.facts.has_files)
        and has_same_columns(source, manifest.columns_source)
    )


def indexed_collection(embeddings: Embeddings, workspace: Workspace) -> Path:
    """Return the folder of an index of all rows, brought up to date or built.

    Raises the errors of `build_index`.
    """
    backend = "exact" if len(embeddings) <= MAX_EXACT_ROWS else BACKEND
    metric = embeddings.facts.metric
    folder = workspace.index_folder(embeddings.folder, backend, metric)
    if is_index(folder) and IndexFacts.read(folder).embeddings == (embeddings.identity,):
        return folder
    from retrieval.index.build import build_index
    from retrieval.index.follow import follow_embeddings

    if follow_embeddings([embeddings], backend, folder, metric) is None:
        build_index([embeddings], backend, folder)
    return folder

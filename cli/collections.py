"""Bring a folder of images up to date, for commands that take one: its embeddings first."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import Output, plural

if TYPE_CHECKING:
    from retrieval.collection import EncodedCollection
    from retrieval.workspace import Workspace


def encoded(
    output: Output,
    workspace: "Workspace",
    folder: str,
    encoder: str | None,
    device: str,
    words: bool,
) -> "tuple[EncodedCollection, Workspace]":
    """Return the embeddings of the folder, and the workspace that they are in.

    Say what could not be read. words: whether they are for searches in words. Raises the errors of
    `encoded_collection`.
    """
    from retrieval.collection import encoded_collection
    from retrieval.images import open_source
    from retrieval.workspace import Workspace

    source = open_source(folder, note=output.warn)
    given = None if workspace.folder == Workspace.at(None).folder else workspace.folder
    chosen = Workspace.of_collection(given, Path(folder).resolve())
    with output.progress(f"encode {source.name}", "image") as show:
        found = encoded_collection(source, chosen, encoder, device, output.hint, show, words)
    for sentence in () if found.outcome is None else found.outcome.notes:
        output.warn(sentence)
    if found.outcome is not None and found.outcome.manifest.skipped:
        skipped = plural(found.outcome.manifest.skipped, "image")
        listed = found.embeddings.folder / "skipped.parquet"
        output.warn(f"{skipped} could not be read; {listed} lists them with the reasons")
    return found, chosen

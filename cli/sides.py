"""Open the queries and the database of an evaluation, for `retr eval` and `retr report`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import parsed_choice
from cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retrieval.quality.evaluation import Evaluation
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.protocols import Sides
    from retrieval.storage.sets.embeddings import Embeddings
    from retrieval.workspace import Workspace


def open_database(workspace: "Workspace", database: str | None) -> "Embeddings":
    """Return the embeddings to search."""
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.workspace import Role

    return open_embeddings(database or workspace.needed(Role.DATABASE, "retr encode", "--database"))


def warn_of_assigned(output: Output, embeddings: "Embeddings") -> None:
    """Say that the labels come from words, so that an evaluation does not measure the truth."""
    if embeddings.manifest.assigned is not None:
        output.warn(
            f"the labels of {embeddings.folder} are from 'retr label', not given: 'retr label "
            f"{embeddings.folder} --clear' takes them away"
        )


def open_folders(
    workspace: "Workspace", queries: str | None, database: str | None
) -> "tuple[Embeddings, Embeddings]":
    """Return the embeddings of both sides. Raises Mismatch unless one encoder made them."""
    from retrieval.storage.sets.compatible import check_same_encoder
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.workspace import Role

    asked = open_embeddings(
        queries or workspace.needed(Role.QUERIES, "retr encode --split test", "--queries")
    )
    searched = open_database(workspace, database)
    check_same_encoder(
        asked.facts.encoder, searched.facts.encoder, str(asked.folder), str(searched.folder)
    )
    return asked, searched


def open_sides(
    output: Output,
    folders: "tuple[Embeddings, Embeddings]",
    protocol: str | None,
    seed: int,
    draw: Path | None = None,
    through_index: bool = False,
) -> "Sides":
    """Return the sides of the protocol; without one, all queries and the whole database.

    through_index: an index is searched, which holds the whole database.

    Raises BadInput for a draw or an index that the protocol does not take.
    """
    from retrieval.errors import BadInput
    from retrieval.quality.protocols import Protocol, sides_of_folders

    for each in {str(each.folder): each for each in folders}.values():
        warn_of_assigned(output, each)
    chosen = None if protocol is None else parsed_choice("protocol", protocol, Protocol)
    if draw is not None and (chosen is None or not chosen.draws):
        raise BadInput("--draw needs a hashing protocol; add --protocol hashing-54k or hashing-59k")
    if through_index and chosen not in (None, Protocol.OFFICIAL):
        raise BadInput(
            f"--index searches the whole database, and --protocol {chosen} does not; leave one of "
            "them out"
        )
    return sides_of_folders(*folders, chosen, seed, draw, output.warn)


def evaluated_through(
    index: str,
    options: "Mapping[str, object] | None",
    searched: "Embeddings",
    queries: "Labelled",
    database: "Labelled",
    ks: "Sequence[int]",
    depth: int,
) -> "Evaluation":
    """Evaluate the hits of an index of the database. Raises Mismatch for another index."""
    from retrieval.index.folder import check_indexed, open_index
    from retrieval.quality.evaluation import evaluate_index

    opened = open_index(index, options)
    check_indexed(opened, searched)
    return evaluate_index(queries, database, opened.index, opened.facts.metric, ks, depth)

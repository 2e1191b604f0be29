"""Open the queries and the database of an evaluation, for `retr eval` and `retr report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import EngineOptions, parsed_choice, parsed_options
from cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retrieval.index.folder import OpenIndex
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


@dataclass(frozen=True, slots=True)
class AskedIndex:
    """An index to evaluate, with its search options and where it is searched."""

    folder: str
    options: "Mapping[str, object] | None"
    spread: EngineOptions

    @classmethod
    def of(
        cls, folder: str | None, options: list[str] | None, spread: EngineOptions
    ) -> "AskedIndex | None":
        """Return the index that is asked for; None for exact search.

        Raises BadInput for an engine without an index, and for --partial.
        """
        from retrieval.errors import BadInput

        if folder is None and spread != EngineOptions():
            raise BadInput("--engine ray searches an index; name one with --index")
        if spread.partial:
            raise BadInput(
                "--partial is for searches, and an evaluation needs all rows; leave it out"
            )
        return None if folder is None else cls(folder, parsed_options(options), spread)

    def opened(self) -> "OpenIndex":
        """Open the index. Raises the errors of `open_index` or `open_on_cluster`."""
        from retrieval.index.folder import open_index

        cluster = self.spread.cluster()
        if cluster is None:
            return open_index(self.folder, self.options)
        from retrieval.index.on_ray import open_on_cluster

        return open_on_cluster(self.folder, self.options, cluster)


def evaluated_through(
    asked: AskedIndex,
    searched: "Embeddings",
    queries: "Labelled",
    database: "Labelled",
    ks: "Sequence[int]",
    depth: int,
) -> "Evaluation":
    """Evaluate the hits of an index of the database. Raises Mismatch for another index."""
    from retrieval.index.folder import check_indexed
    from retrieval.quality.evaluation import evaluate_index

    opened = asked.opened()
    check_indexed(opened, searched)
    return evaluate_index(queries, database, opened.index, opened.facts.metric, ks, depth)

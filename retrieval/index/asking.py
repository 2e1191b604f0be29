"""Searches as the command line asks for them: images and words, alone or joined to one query."""

import os
from collections.abc import Sequence
from itertools import groupby

from retrieval.contracts import Json
from retrieval.embedding.queries import is_words, query_images
from retrieval.embedding.query import Query, Weights
from retrieval.errors import BadImage, BadInput, TakesNoWords
from retrieval.images.source import Note, no_note
from retrieval.images.tables.choice import NO_CHOICE, Columns
from retrieval.index.searching import QueryHits, Searcher, label_of_own_hit
from retrieval.storage.sets.manifest import Skipped


def search_each(
    searcher: Searcher,
    queries: Sequence[str],
    k: int | None = None,
    where: str | None = None,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
) -> tuple[list[QueryHits], list[Skipped]]:
    """Return the answers to all queries in order, and the images that could not be read.

    A query is words where `is_words` is true, else images. The rest is as for
    `Searcher.search_files`.
    """
    answers: list[QueryHits] = []
    skipped: list[Skipped] = []
    for words, group in groupby(queries, is_words):
        given = [*group]
        if words:
            try:
                found = searcher.search_text(given, k, where, note)
            except TakesNoWords as error:
                raise TakesNoWords(f"there is no file '{given[0]}', and {error}") from None
            answers += [
                QueryHits(f'"{text}"', text, None, None, hits)
                for text, hits in zip(given, found, strict=True)
            ]
        else:
            try:
                found_files, unread = searcher.search_files(given, k, where, note, columns)
            except BadImage as error:
                raise _with_hint(error, given) from None
            answers += found_files
            skipped += unread
    return answers, skipped


def _with_hint(error: BadImage, given: Sequence[str]) -> BadImage:
    """Return the error with a hint at --text, if the first argument may have been meant as words.

    It was taken as a path because it looks like one, and no such file exists.
    """
    if "://" in given[0] or os.path.lexists(given[0]):
        return error
    problem = error.reason.partition(";")[0]
    return BadImage(given[0], f"{problem}; correct the path, or search for words with --text")


def search_joined(
    searcher: Searcher,
    queries: Sequence[str],
    texts: Sequence[str],
    without: Sequence[str],
    weights: Weights,
    k: int | None = None,
    where: str | None = None,
    note: Note = no_note,
    columns: Columns = NO_CHOICE,
) -> QueryHits:
    """Return the hits of one query of all these images and words.

    queries: images, or words that are added to the texts. Raises BadInput for an empty query, and
    the errors of `query_images` and `Searcher.search`.
    """
    files = [query for query in queries if not is_words(query)]
    texts = [*filter(is_words, queries), *texts]
    images = [*query_images(files, note, columns)] if files else []
    query = Query([image.image for image in images], texts, without, weights=weights)
    hits = searcher.search(query, k, where, note)[0]
    path = images[0].path if len(images) == 1 else None
    label = label_of_own_hit(path, hits) if path is not None and not query.words else None
    described: dict[str, Json] = {
        "images": [*files],
        "texts": [*query.texts],
        "not": [*query.without],
    }
    return QueryHits(_named(files, query), described, path, label, hits)


def _named(files: Sequence[str], query: Query) -> str:
    """Return the query as people read it: `beach.jpg + "at night", not "people"`."""
    wanted = " + ".join([*files, *(f'"{text}"' for text in query.texts)])
    unwanted = " or ".join(f'"{text}"' for text in query.without)
    return ", ".join(filter(None, (wanted, unwanted and f"not {unwanted}")))


def check_asked(queries: Sequence[str], joined: bool, weights: Sequence[str]) -> None:
    """Raise BadInput if nothing is asked for, or weights are given without a joined query."""
    if not queries and not joined:
        raise BadInput("nothing to search for; give an image, or words")
    if weights and not joined:
        raise BadInput("--weight is for queries with --text or --not; leave it out")

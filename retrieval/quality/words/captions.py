"""Recall of captions: the images of texts, and the texts of images, as COCO and Flickr30k do it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Json, Metric, Vectors
from retrieval.errors import BadInput
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import DEFINITIONS
from retrieval.quality.per_query import PerQuery
from retrieval.quality.ranking import Rows, map_rankings
from retrieval.quality.significance import Values, bootstrap_of_groups
from retrieval.quality.words.texts import TextQueries
from retrieval.storage.names import nfc

CAPTION_KS = (1, 5, 10)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Direction:
    """Recall@k in one direction, with 95% confidence intervals, and the median rank.

    queries: number of texts, or of images. ranked: number of images, or of texts. recall_at,
    intervals: by k.
    """

    queries: int
    ranked: int
    recall_at: dict[int, float]
    intervals: dict[int, Interval]
    median_rank: float

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "queries": self.queries,
            "ranked": self.ranked,
            "recall_at": {str(k): value for k, value in self.recall_at.items()},
            "intervals": {"recall_at": {str(k): list(ends) for k, ends in self.intervals.items()}},
            "median_rank": self.median_rank,
        }


@dataclass(frozen=True, slots=True)
class CaptionRecall:
    """Recall of captions in both directions.

    left_out: number of texts whose image is not in the database. per_query: of each text; its
    label is the id of its image.
    """

    text_to_image: Direction
    image_to_text: Direction
    left_out: int
    database: int
    metric: Metric
    per_query: PerQuery = field(repr=False)

    def __post_init__(self) -> None:
        resolve_choices(self)

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "text_to_image": self.text_to_image.to_json(),
            "image_to_text": self.image_to_text.to_json(),
            "left_out": {"without_image": self.left_out},
            "database": self.database,
            "metric": self.metric.value,
            "definitions": {"caption_recall_at": DEFINITIONS["caption_recall_at"]},
        }


def caption_recall(
    queries: TextQueries,
    texts: Vectors,
    database: Labelled,
    metric: Metric | str,
    ks: Sequence[int] = CAPTION_KS,
    depth: int = 0,
    ids: Sequence[str] | None = None,
) -> CaptionRecall:
    """Return recall@k of texts that each describe one image, from exact rankings.

    queries: with the id of each text's image. texts: their vectors (t, dim). depth: rows to keep of
    each text's ranking. ids: (n,), of the images; None for those of the database.

    text→image: the share of texts whose image is among the first k images. image→text: the share
    of described images with one of their texts among the first k texts. Equal distances rank by
    row. Raises BadInput if no text has its image in the database.
    """
    metric = choice(Metric, metric)
    rows = _rows_of(queries.relevant, [*map(str, database.ids)] if ids is None else ids)
    known = np.flatnonzero(rows >= 0)
    if not len(known):
        raise BadInput(
            f"no text of {queries.name} has its image in the database: there is no id "
            f"'{queries.relevant[0]}'; give ids as 'retr search --json' prints them"
        )
    described, group = np.unique(rows[known], return_inverse=True)
    kept = np.full((len(known), depth), -1, np.int64)

    def rank_of_image(i: int, ranking: Rows) -> int:
        kept[i, : len(ranking[:depth])] = ranking[:depth]
        return int(np.flatnonzero(ranking == rows[known[i]])[0]) + 1

    def rank_of_first_text(i: int, ranking: Rows) -> int:
        return int(np.flatnonzero(group[ranking] == i)[0]) + 1

    ranks = np.array(map_rankings(texts[known], database.vectors, metric, rank_of_image))
    back = map_rankings(database.vectors[described], texts[known], metric, rank_of_first_text)
    return CaptionRecall(
        _direction(ranks, group, ks, len(database)),
        _direction(np.array(back), np.arange(len(described)), ks, len(known)),
        len(rows) - len(known),
        len(database),
        metric,
        PerQuery(
            [queries.ids[i] for i in known.tolist()],
            [str(database.ids[row]) for row in rows[known].tolist()],
            [f"recall_at_{k}" for k in ks],
            (ranks[:, None] <= np.array(ks)).astype(np.float64),
            kept,
            np.full(len(known), -1),
        ),
    )


def _rows_of(wanted: Sequence[str], ids: Sequence[str]) -> Rows:
    """Return the row (t,) of each id, in any form of Unicode; -1 if it is not there."""
    row_of = {nfc(name): row for row, name in enumerate(ids)}
    return np.array([row_of.get(nfc(name), -1) for name in wanted], np.int64)


def _direction(ranks: Rows, group: Rows, ks: Sequence[int], ranked: int) -> Direction:
    """Return the recalls. group: (q,), the image of each query: its queries are drawn together."""
    hits: Values = (ranks[:, None] <= np.array(ks)).astype(np.float64)
    ends = bootstrap_of_groups(hits, group)
    return Direction(
        len(ranks),
        ranked,
        dict(zip(ks, hits.mean(axis=0).tolist(), strict=True)),
        dict(zip(ks, map(tuple, ends.T.tolist()), strict=True)),
        float(np.median(ranks)),
    )

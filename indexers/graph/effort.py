"""Choose how many candidates the walk of a graph keeps by default."""

from collections.abc import Callable

from retrieval.contracts import Blocks, Index, Metric

DEFAULT_EF = 128
EF_DEFAULTS = (DEFAULT_EF, 256, 512, 1024)
"""Numbers of candidates that the default is chosen from."""

TARGET_RECALL = 0.97
"""Recall@10 of the default for rows of the index.

A graph finds these more easily than other queries, whose recall should be at least .95.
"""

RECALL_MARGIN = 0.005  # less than this is not worth more candidates


def settle_ef(set_ef: Callable[[int], None], index: Index, blocks: Blocks, metric: Metric) -> None:
    """Set the least number of candidates that finds the neighbors of some of the index's rows.

    blocks: the vectors of the rows. Where no number reaches `TARGET_RECALL`, it is the least that
    comes close to the best.
    """
    from retrieval.index.recall import measured_recall  # whose libraries no search loads

    set_ef(DEFAULT_EF)
    if blocks.rows <= DEFAULT_EF:
        return
    recalls: dict[int, float] = {}
    for ef in EF_DEFAULTS:
        set_ef(ef)
        recalls[ef] = measured_recall(index, blocks, metric)
        if recalls[ef] >= TARGET_RECALL:
            return
    enough = max(recalls.values()) - RECALL_MARGIN
    set_ef(next(ef for ef in EF_DEFAULTS if recalls[ef] >= enough))

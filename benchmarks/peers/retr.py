"""retr's backends, through `Index.search`, and the choice of `--backend auto`."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, cast

import faiss

from benchmarks.peers.peer import EFFORTS, Ladders, Peer
from benchmarks.suite.machine import cores
from retrieval.contracts import Index, Indexer, Metric, Rows, Tunable, Vectors
from retrieval.index.auto.budget import Budget
from retrieval.index.auto.final import best_of
from retrieval.index.auto.halving import Trials
from retrieval.index.auto.measuring import TuningQueries
from retrieval.index.auto.trials import Target
from retrieval.registry import make_indexer

RECALL_TARGETS = (0.95, 0.99)  # an index that reaches 0.95 also reaches 0.9
CORES = cores()


def _keep_to(threads: int) -> None:
    """Set the number of faiss's threads, and pin the process to as many cores."""
    faiss.omp_set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES[:threads])


class _Retr(Peer):
    """A backend of retr; an effort is one of its indexers."""

    backend: ClassVar[str]
    options: ClassVar[dict[str, object]] = {}

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        faiss.omp_set_num_threads(threads)
        indexer = make_indexer(self.backend, {**self.options, "metric": metric})
        indexer.build(vectors).save(folder)
        self.index: Index = indexer.load(folder)
        tunable = cast(Tunable, indexer)
        ladders: Ladders = tunable.ladders()
        if hasattr(indexer, "ef"):  # in the same steps as other graphs
            ladders = [[replace(cast(Any, indexer), ef=ef) for ef in EFFORTS]]
        self.ladders = ladders  # type: ignore[misc]

    def set(self, effort: Tunable, threads: int) -> None:
        _keep_to(threads)
        effort.apply(self.index)

    def search(self, queries: Vectors, k: int) -> Rows:
        return self.index.search(queries, k).rows


class RetrExact(_Retr):
    backend = "exact"


class RetrIvf(_Retr):
    backend = "ivf"


class RetrHnsw(_Retr):
    backend = "hnsw"


class RetrHnswPca(_Retr):
    backend = "hnsw-pca"


class RetrIvfPq(_Retr):
    backend = "ivfpq"


class RetrVamana(_Retr):
    backend = "vamana"


class RetrAuto(Peer):
    """The choices of `auto` for each target: for single queries, and for batches."""

    ladders: ClassVar[Ladders] = tuple((target,) for target in RECALL_TARGETS)

    def build(self, vectors: Vectors, metric: Metric, threads: int, folder: Path) -> None:
        self.made: dict[tuple[float, bool], tuple[Indexer, Path]] = {}
        faiss.omp_set_num_threads(threads)
        asked = TuningQueries.of(vectors, None, 0)
        for recall, batches in product(RECALL_TARGETS, (False, True)):
            place = folder / f"{recall}-{batches}"
            place.mkdir()
            target = Target(recall, batches=batches)
            trials = Trials(vectors, asked, metric, target, place, Budget(), lambda _: None)
            best, _ = best_of(trials, trials.over_samples(0))
            self.made[recall, batches] = best.chosen, best.folder

    def set(self, effort: float, threads: int) -> None:
        _keep_to(threads)
        indexer, folder = self.made[effort, threads > 1]
        self.index: Index = indexer.load(folder)

    def search(self, queries: Vectors, k: int) -> Rows:
        return self.index.search(queries, k).rows

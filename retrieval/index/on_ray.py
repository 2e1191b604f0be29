"""Build the segments of an index on a Ray cluster, and search them there."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, cast

from retrieval.contracts import Hits, Index, Json
from retrieval.errors import BadData, Mismatch, NoCluster
from retrieval.index.build_segments import SegmentBuilder, even_groups
from retrieval.index.fan_out import FannedIndex, Request, Segment, Tolerance, searched
from retrieval.index.folder import (
    INDEX,
    REMEDY,
    IndexFacts,
    OpenIndex,
    changed_options,
    columns_of,
    folder_of,
    open_index,
    rows_of,
)
from retrieval.index.segments import SegmentedIndex
from retrieval.runtime.ray import cluster_workers, connect, connected, run_tasks
from retrieval.runtime.ray_actors import Actor, Node, nodes, placed
from retrieval.storage.files import sha256_of
from retrieval.storage.places import Place, place_of

MEMORY_SHARE = 1.3  # an open segment needs this times the size of its files
MEMORY_BYTES = 300 << 20  # a process with the libraries needs these, and for answers

OPEN_SECONDS = 120.0  # to start processes on the nodes, and
OPEN_BYTES_PER_SECOND = 20e6  # to read the files, at worst


@contextmanager
def segments_on_cluster(address: str | None) -> Iterator[SegmentBuilder]:
    """Yield an engine of `build_segments` that runs on the cluster at the address.

    Raises the errors of `connected`.
    """
    with connected(address):
        cpus = cluster_workers("cpu").cpus
        yield lambda build, tasks: run_tasks(build, tasks, cpus)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster to search on. address: as for `connected`. replicas: of each segment."""

    address: str | None = None
    replicas: int = 1
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(slots=True)
class SegmentsOnNode:
    """Consecutive segments of an index that a node opens at the first request.

    sha256: of the `index.json` of each folder, so that a node that sees other files is found out.
    """

    sha256: Mapping[str, str]
    options: Mapping[str, object] | None
    version: str
    opened: Index | None = None

    def __call__(self, request: Request | None) -> Hits | None:
        """Answer the request; for None, only open the segments.

        Raises Mismatch for another version of retr, BadData for other files, and the errors of
        `open_index`.
        """
        if self.opened is None:
            self._check_version()
            parts = [self._open(place_of(folder)) for folder in self.sha256]
            self.opened = parts[0] if len(parts) == 1 else SegmentedIndex(parts)
        return None if request is None else searched(self.opened, request)

    def _check_version(self) -> None:
        if version_of("retr") != self.version:
            raise Mismatch(
                f"retr has version {version_of('retr')}, and {self.version} where the search "
                "started; install the same on every node"
            )

    def _open(self, folder: Place) -> Index:
        if not (folder / INDEX).is_file():
            raise BadData(
                f"{folder} is missing; put the index where every node finds it under this name"
            )
        if sha256_of(folder / INDEX) != self.sha256[str(folder)]:
            raise BadData(f"{folder} has other files than where the search started; {REMEDY}")
        return open_index(folder, self.options).index


@dataclass(frozen=True, slots=True)
class HeldIndex:
    """An index whose segments lie in the memory of a cluster's nodes.

    It can be sent to other processes of the cluster. version: the sha256 of `index.json`.
    """

    folder: str
    version: str
    options: Mapping[str, object] | None
    segments: list[Segment]
    tolerance: Tolerance

    def opened(self) -> OpenIndex:
        """Open the index in this process, which reads the tables of ids, labels, paths and columns.

        Raises BadData if the folder has another version now, and the errors of `open_index`.
        """
        folder = place_of(self.folder)
        facts, _ = changed_options(IndexFacts.read(folder), self.options)
        rows, columns = rows_of(folder, facts), columns_of(folder, facts)
        if sha256_of(folder / INDEX) != self.version:
            raise BadData(f"{folder} has changed since the nodes opened it; open it again")
        details: dict[str, Json] = {
            **facts.details,
            "engine": "ray",
            "segments": len(self.segments),
        }
        index = FannedIndex(self.segments, facts.dim, details, self.tolerance)
        return OpenIndex(folder, facts, index, rows, columns)


def hold(
    folder: Place | str, options: Mapping[str, object] | None = None, cluster: Cluster | None = None
) -> HeldIndex:
    """Let the nodes of a cluster open the segments of an index. This process stays connected.

    The nodes free their memory when no process has the result any more.

    Raises the errors of `open_index`, `connect` and `placed`, also those that a node meets.
    """
    cluster = cluster or Cluster()
    folder = place_of(folder)
    facts, _ = changed_options(IndexFacts.read(folder), options)
    version = sha256_of(folder / INDEX)
    connect(cluster.address)
    home = folder.resolve() if isinstance(folder, Path) else folder
    segments = _segments(home, facts, options, cluster)
    return HeldIndex(str(home), version, options, segments, cluster.tolerance)


def open_on_cluster(
    folder: Place | str, options: Mapping[str, object] | None = None, cluster: Cluster | None = None
) -> OpenIndex:
    """Open an index whose segments lie in the memory of a cluster's nodes, see `hold`."""
    return hold(folder, options, cluster).opened()


def _segments(
    folder: Place, facts: IndexFacts, options: Mapping[str, object] | None, cluster: Cluster
) -> list[Segment]:
    """Start the replicas of all segments, and wait until each has opened its files."""
    places = [folder_of(part, folder) for part in facts.parts] or [folder]
    rows = [part.rows for part in facts.parts] or [facts.rows]
    sizes = [int(MEMORY_SHARE * IndexFacts.read(each).size_in(each)) for each in places]
    started: list[tuple[int, list[Actor]]] = []
    for run, chosen in _runs(sizes, cluster.replicas):
        sha256 = {str(place): sha256_of(place / INDEX) for place in places[run]}
        held = SegmentsOnNode(sha256, options, version_of("retr"))
        memory = sum(sizes[run]) + MEMORY_BYTES
        started.append((sum(rows[run]), [Actor(held, node, memory) for node in chosen]))
    deadline = time.monotonic() + OPEN_SECONDS + sum(sizes) / OPEN_BYTES_PER_SECOND
    for opening in [actor.start(None) for _, actors in started for actor in actors]:
        try:
            opening.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise NoCluster(
                f"the nodes did not open {folder} in time; see Ray's logs, and look for nodes "
                "without memory"
            ) from None
    return [Segment(count, cast(Any, actors)) for count, actors in started]


def _runs(sizes: Sequence[int], replicas: int) -> list[tuple[slice, tuple[Node, ...]]]:
    """Return runs of consecutive segments, with the nodes for each.

    sizes: bytes of each segment in memory. A query costs a message to each run. So there are as
    many runs as nodes; or, if their memory does not suffice for these, a run of each segment.

    Raises NoCluster if it does not suffice for these either.
    """
    there = nodes()

    def placed_runs(runs: Sequence[slice]) -> list[tuple[slice, tuple[Node, ...]]]:
        needed = [sum(sizes[run]) + MEMORY_BYTES for run in runs]
        return [*zip(runs, placed(needed, there, replicas), strict=True)]

    try:
        return placed_runs(even_groups(sizes, len(there)))
    except NoCluster:
        return placed_runs([slice(number, number + 1) for number in range(len(sizes))])

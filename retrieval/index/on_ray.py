"""Build the segments of an index on a Ray cluster, and search them there."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, cast

from retrieval.contracts import Hits, Json
from retrieval.errors import BadData, Mismatch, NoCluster
from retrieval.index.build_segments import SegmentBuilder
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
from retrieval.runtime.ray import cluster_workers, connect, connected, run_tasks
from retrieval.runtime.ray_actors import Actor, nodes, placed
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
class SegmentOnNode:
    """A segment that a node opens at the first request.

    sha256: of its `index.json`, so that a node that sees other files is found out.
    """

    folder: str
    sha256: str
    options: Mapping[str, object] | None
    version: str
    opened: OpenIndex | None = None

    def __call__(self, request: Request | None) -> Hits | None:
        """Answer the request; for None, only open the segment.

        Raises Mismatch for another version of retr, BadData for other files, and the errors of
        `open_index`.
        """
        if self.opened is None:
            self.opened = self._open()
        return None if request is None else searched(self.opened.index, request)

    def _open(self) -> OpenIndex:
        if version_of("retr") != self.version:
            raise Mismatch(
                f"retr has version {version_of('retr')}, and {self.version} where the search "
                "started; install the same on every node"
            )
        folder = place_of(self.folder)
        if not (folder / INDEX).is_file():
            raise BadData(
                f"{folder} is missing; put the index where every node finds it under this name"
            )
        if sha256_of(folder / INDEX) != self.sha256:
            raise BadData(f"{folder} has other files than where the search started; {REMEDY}")
        return open_index(folder, self.options)


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
    counts = [part.rows for part in facts.parts] or [facts.rows]
    every = [IndexFacts.read(place) for place in places]
    sizes = [
        int(MEMORY_SHARE * each.size_in(place)) + MEMORY_BYTES
        for each, place in zip(every, places, strict=True)
    ]
    started = []
    for place, size, chosen in zip(
        places, sizes, placed(sizes, nodes(), cluster.replicas), strict=True
    ):
        held = SegmentOnNode(str(place), sha256_of(place / INDEX), options, version_of("retr"))
        started.append([Actor(held, node, size) for node in chosen])
    deadline = time.monotonic() + OPEN_SECONDS + sum(sizes) / OPEN_BYTES_PER_SECOND
    for opening in [actor.start(None) for actors in started for actor in actors]:
        try:
            opening.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise NoCluster(
                f"the nodes did not open {folder} in time; see Ray's logs, and look for nodes "
                "without memory"
            ) from None
    return [
        Segment(count, cast(Any, actors)) for count, actors in zip(counts, started, strict=True)
    ]

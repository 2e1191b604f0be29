"""Build the segments of an index on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from retrieval.index.build_segments import SegmentBuilder
from retrieval.runtime.ray import cluster_workers, connected, run_tasks


@contextmanager
def segments_on_cluster(address: str | None) -> Iterator[SegmentBuilder]:
    """Yield an engine of `build_segments` that runs on the cluster at the address.

    Raises the errors of `connected`.
    """
    with connected(address):
        cpus = cluster_workers("cpu").cpus
        yield lambda build, tasks: run_tasks(build, tasks, cpus)

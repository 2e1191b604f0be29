"""Measure searches on a Ray cluster: `python -m benchmarks.speed.cluster --help`.

The cluster's nodes run on this machine, so that they share its cores: the figures are the cost of
the engine, not the gain of more machines. An index in 1, 2, 4 and 8 parts is searched by this
process and by the nodes, in turns. `one`: milliseconds of one query, median and 99th percentile.
`batch`: queries per second of a batch.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster as Nodes

from benchmarks.speed.scale import draw
from benchmarks.suite import machine
from retrieval.contracts import Index, Json, Metric, Vectors
from retrieval.index.build_segments import build_segments
from retrieval.index.folder import open_index
from retrieval.index.on_ray import Cluster, open_on_cluster
from retrieval.runtime.ray import connected
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter

K = 10
SINGLE_QUERIES = 300
BATCH_QUERIES = 4_096
NODE_MEMORY_BYTES = 4 << 30
NODE_STORE_BYTES = 256 << 20  # for answers on their way


def measure(rows: int, parts: Sequence[int], nodes: int, backend: str, rounds: int) -> Json:
    """Return the measures of this process and of the nodes for each number of parts."""
    found: dict[str, Any] = {"rows": rows, "nodes": nodes, "backend": backend}
    queries = draw(BATCH_QUERIES, 1)
    with tempfile.TemporaryDirectory() as place, _nodes(nodes) as address:
        root = Path(place)
        database = _written(root / "set", draw(rows, 0), max(parts))
        for count in parts:
            folder = root / f"index-{count}"
            build_segments([database], backend, folder, count)
            here, there = open_index(folder).index, open_on_cluster(folder, None, Cluster(address))
            ways = {"here": here, "ray": there.index}
            same = np.array_equal(here.search(queries, K).rows, there.index.search(queries, K).rows)
            taken: dict[str, Any] = {name: {"one": [], "batch": []} for name in ways}
            for _ in range(rounds):
                for name, index in ways.items():
                    taken[name]["one"] += _single(index, queries)
                    taken[name]["batch"].append(_batch(index, queries))
            found[f"{count} parts"] = {"same_rows": same} | {
                name: {
                    "one_ms": float(np.median(of["one"])),
                    "one_p99_ms": float(np.quantile(of["one"], 0.99)),
                    "batch_per_second": float(np.median(of["batch"])),
                }
                for name, of in taken.items()
            }
    return {**found, "machine": machine.describe()}


@contextmanager
def _nodes(count: int) -> Any:
    """Run a cluster on this machine, and yield its address."""
    node: dict[str, Any] = {
        "num_cpus": 1,
        "memory": NODE_MEMORY_BYTES,
        "object_store_memory": NODE_STORE_BYTES,
    }
    made = Nodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            made.add_node(**node)
        with connected(made.address):
            yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def _written(folder: Path, vectors: Vectors, shards: int) -> Embeddings:
    """Write the vectors as embeddings, and open these."""
    rows = -(-len(vectors) // shards)
    facts = Facts(
        encoder=EncoderFacts("random", "0" * 64, {}),
        dim=vectors.shape[1],
        dtype=Dtype.FLOAT32,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts("random", "0" * 64, len(vectors)),
        shard_images=rows,
    )
    writer = ShardWriter(folder, facts)
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        ids = [str(start + row) for row in range(len(part))]
        none = [None] * len(part)
        writer.write(ids, none, none, part)
    writer.finish()
    return open_embeddings(folder)


def _single(index: Index, queries: Vectors) -> list[float]:
    """Return the milliseconds of single queries."""
    taken = []
    for row in range(SINGLE_QUERIES):
        started = time.perf_counter()
        index.search(queries[row : row + 1], K)
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def _batch(index: Index, queries: Vectors) -> float:
    started = time.perf_counter()
    index.search(queries, K)
    return len(queries) / (time.perf_counter() - started)


def main() -> None:
    """Print the measures, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--backend", default="hnsw-pca")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = measure(given.rows, given.parts, given.nodes, given.backend, given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

"""Reckon searches on many nodes: `python -m benchmarks.studies.fan_out --help`.

A query goes to all nodes at once and waits for the slowest. Model: the time of a node is lognormal,
with the median and the 99th percentile that `benchmarks.speed.cluster` measured for one part, and
independent of other nodes. The answer takes the maximum of n such times, and the merge of n partial
answers, which is measured here. The quantile q of the maximum is the quantile q^(1/n) of one node
(David and Nagaraja, Order Statistics, 2003, 2.1). With hedging, a node that takes longer than its
95th percentile d is replaced by a second one: it takes min(T, d + T').

A simulation with random times checks the formulas. `sizes` has the nodes that collections need.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any

import numpy as np

from benchmarks.suite import machine
from retrieval.contracts import Json
from retrieval.hits import merged

K = 10
DIM = 768
HEDGED_ABOVE = 0.95
MERGED_PARTS = (10, 100, 1_000)
NODES = (1, 3, 10, 100, 1_000)
ROWS = (10**8, 10**9, 10**10)
NODE_BYTES = 200 * 10**9  # for vectors, of a node of 256 GB
MEMORY_SHARE = 1.3  # `retrieval.index.on_ray` reserves as much
GRAPH_BYTES = 128 + 128 + 9  # code, links and the rest of a row of hnsw-pca
BYTES_PER_ROW = {"hnsw-pca": 4 * DIM + GRAPH_BYTES, "hnsw-pca compact": DIM + GRAPH_BYTES}
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """The time of one node for a query, in ms: lognormal with this median and 99th percentile."""

    median: float
    p99: float

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm."""
        return math.log(self.p99 / self.median) / NORMAL.inv_cdf(0.99)

    def quantile(self, share: float) -> float:
        """Return the time that this share of the queries does not exceed."""
        return self.median * math.exp(self.sigma * NORMAL.inv_cdf(share))

    def share_within(self, ms: float) -> float:
        """Return the share of the queries that take at most this time."""
        return 0.0 if ms <= 0 else NORMAL.cdf(math.log(ms / self.median) / self.sigma)

    def drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return random times (count,)."""
        return self.median * np.exp(self.sigma * rng.standard_normal(count))


def slowest(times: NodeTimes, nodes: int, share: float, hedged: bool = False) -> float:
    """Return the quantile `share` of the slowest of the nodes, in ms."""
    wanted = share ** (1 / nodes)
    if not hedged:
        return times.quantile(wanted)
    delay = times.quantile(HEDGED_ABOVE)

    def within(ms: float) -> float:
        both = (1 - times.share_within(ms)) * (1 - times.share_within(ms - delay))
        return 1 - both

    low, high = 0.0, times.quantile(1 - 1e-12)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < wanted else (low, middle)
    return high


def simulated(
    times: NodeTimes, nodes: int, share: float, hedged: bool = False, queries: int = 20_000
) -> float:
    """Return the same by random times of that many queries."""
    rng = np.random.default_rng(0)
    delay = times.quantile(HEDGED_ABOVE)
    found = np.empty(queries)
    for query in range(queries):
        drawn = times.drawn(nodes, rng)
        if hedged:
            drawn = np.minimum(drawn, delay + times.drawn(nodes, rng))
        found[query] = drawn.max()
    return float(np.quantile(found, share))


def merge_ms(parts: int, rounds: int = 20) -> float:
    """Return the milliseconds to merge the answers of that many nodes to one query."""
    rng = np.random.default_rng(0)
    answers = [
        (rng.integers(0, 10**9, (1, K)), np.sort(rng.random((1, K), np.float32), axis=1))
        for _ in range(parts)
    ]
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        merged(answers, K)
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken)


def reckoned(times: NodeTimes, message_ms: float) -> dict[str, Json]:
    """Return the model beside its simulation, and the nodes for collections.

    message_ms: work of the process that searches, for each message to a node.
    """
    merging = {parts: merge_ms(parts) for parts in MERGED_PARTS}
    per_node = merging[MERGED_PARTS[-1]] / MERGED_PARTS[-1] + message_ms
    fans: dict[str, Any] = {}
    for nodes in NODES:
        fans[f"{nodes} nodes"] = {
            f"{name}{', hedged' if hedged else ''}": {
                "model": round(slowest(times, nodes, share, hedged), 2),
                "simulation": round(simulated(times, nodes, share, hedged), 2),
            }
            for hedged in (False, True)
            for name, share in (("p50", 0.5), ("p99", 0.99))
        } | {"messages_and_merge_ms": round(per_node * nodes, 2)}
    sizes: dict[str, Any] = {}
    for rows in ROWS:
        for name, bytes_of_row in BYTES_PER_ROW.items():
            memory = rows * bytes_of_row * MEMORY_SHARE
            nodes = math.ceil(memory / NODE_BYTES)
            tail = slowest(times, nodes, 0.99) + per_node * nodes
            sizes[f"{rows:,} × {DIM}, {name}"] = {
                "memory_tb": round(memory / 1e12, 2),
                "nodes": nodes,
                "nodes_with_two_replicas": 2 * nodes,
                "p99_ms": round(tail, 1),
                "p99_ms_hedged": round(slowest(times, nodes, 0.99, True) + per_node * nodes, 1),
                "bytes_of_a_query": nodes * (4 * DIM + 12 * K),
            }
    return {
        "merge_ms": {str(parts): round(ms, 3) for parts, ms in merging.items()},
        "fan_out": fans,
        "sizes": sizes,
        "machine": machine.describe(),
    }


def main() -> None:
    """Print the model, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--median", type=float, default=1.7, help="ms of one node, median")
    parser.add_argument("--p99", type=float, default=2.4, help="ms of one node, 99th percentile")
    parser.add_argument(
        "--message", type=float, default=0.6, help="ms of work for each message to a node"
    )
    given = parser.parse_args()
    print(json.dumps(reckoned(NodeTimes(given.median, given.p99), given.message), indent=2))


if __name__ == "__main__":
    main()

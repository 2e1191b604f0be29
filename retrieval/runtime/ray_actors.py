"""Functions that stay on nodes of a Ray cluster, with what they have opened."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from retrieval.errors import Lost, NoCluster, RetrError
from retrieval.runtime.ray import caller, first_line, library, value_of

RESTARTS = -1  # an actor whose worker or node is lost restarts without limit


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. memory: bytes that it can lend to further actors."""

    id: str
    address: str
    memory: int


def nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive."""
    ray = library()
    free = ray._private.state.available_resources_per_node()  # Ray has no public function
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], int(free[node["NodeID"]].get("memory", 0)))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] in free
    ]


def placed(
    sizes: Sequence[int], nodes: Sequence[Node], replicas: int = 1
) -> list[tuple[Node, ...]]:
    """Return the nodes for the replicas of each segment, by the memory in bytes that it needs.

    The largest segment is placed first. A segment goes to the nodes that hold least of the index,
    so that all take about the same time to search. Replicas of a segment are on different nodes.

    Raises NoCluster if there are fewer nodes than replicas, or the memory does not suffice.
    """
    if not 1 <= replicas <= len(nodes):
        raise NoCluster(
            f"--replicas {replicas} on a cluster of {len(nodes)}; give 1 to {len(nodes)}, or start "
            "more nodes"
        )
    left = {node.id: node.memory for node in nodes}
    given = dict.fromkeys(left, 0)
    chosen: dict[int, tuple[Node, ...]] = {}
    for number in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        size = sizes[number]
        fit = [node for node in nodes if left[node.id] >= size]
        if len(fit) < replicas:
            raise NoCluster(
                f"segment {number} needs {_gigabytes(size)} of memory on each of {replicas} nodes; "
                f"the nodes have {', '.join(_gigabytes(each) for each in left.values())} left: "
                "start more or larger nodes, or ask for fewer replicas"
            )
        least = sorted(fit, key=lambda node: (given[node.id], -left[node.id]))[:replicas]
        for node in least:
            left[node.id] -= size
            given[node.id] += size
        chosen[number] = tuple(least)
    return [chosen[number] for number in range(len(sizes))]


class Actor:
    """A function on a node, called with one item after the other.

    If its worker is lost, it restarts there, and on another node if the node is lost.
    """

    def __init__(self, function: Callable[[Any], Any], node: Node, memory: int) -> None:
        """Start the actor. memory: bytes that it needs; Ray lends them to no other actor."""
        ray = library()
        self.place = node.address
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=True)
        kind = ray.remote(
            num_cpus=0, memory=memory, max_restarts=RESTARTS, scheduling_strategy=affinity
        )(caller())
        self._actor = kind.remote(ray.cloudpickle.dumps(function))

    def start(self, item: Any) -> "Future[Any]":
        """Start a call of the function, whose future raises its errors, or Lost."""
        ray = library()
        answered: Future[Any] = Future()
        try:
            row = {"item": ray.cloudpickle.dumps(item)}
            running = self._actor.__call__.remote(row).future()
        except ray.exceptions.RayError as error:
            answered.set_exception(self._as_lost(error))
            return answered

        def settle(finished: "Future[Any]") -> None:
            try:
                answered.set_result(value_of(finished.result()))
            except RetrError as error:
                answered.set_exception(error)
            except Exception as error:
                answered.set_exception(self._as_lost(error))

        running.add_done_callback(settle)
        return answered

    def _as_lost(self, error: Exception) -> Lost:
        return Lost(f"a worker on {self.place} was lost ({first_line(error)})")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"

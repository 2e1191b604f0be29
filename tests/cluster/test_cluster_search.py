"""Searches on a Ray cluster of three nodes that loses workers and nodes."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from retrieval.contracts import Vectors
from retrieval.errors import BadData, BadInput, Mismatch, NoCluster
from retrieval.index.build_segments import build_segments
from retrieval.index.fan_out import Request, Tolerance
from retrieval.index.folder import INDEX, IndexFacts
from retrieval.index.on_ray import Cluster, SegmentsOnNode, open_on_cluster
from retrieval.index.searching import Searcher
from retrieval.runtime.ray import connected
from retrieval.runtime.ray_actors import nodes as alive
from retrieval.storage.files import sha256_of
from tests.made import embeddings

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",  # Ray leaves files and processes to the garbage collector
    "ignore::DeprecationWarning:ray",
    "ignore::FutureWarning:ray",
)

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 2 << 30}
DIM, ROWS, PARTS = 8, 900, 3
TIMEOUT_SECONDS = 30


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Run a cluster of three nodes, which notices a dead node after 2 s."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
        health |= {"health_check_timeout_ms": 1000, "health_check_failure_threshold": 2}
        head = NODE | {"include_dashboard": False, "_system_config": health}
        made = Nodes(initialize_head=True, head_node_args=head)
        try:
            made.add_node(**NODE)
            made.add_node(**NODE)
            with connected(made.address):
                yield made
        finally:
            made.shutdown()


def drawn(rows: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index in three parts."""
    root = tmp_path_factory.mktemp("index")
    made = embeddings(root / "set", drawn(ROWS, 0), shard_rows=ROWS // PARTS)
    facts = build_segments([made], "hnsw", root / "index", PARTS)
    assert len(facts.parts) == PARTS
    return root / "index"


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def actors() -> list[int]:
    """Return the ids of the processes that hold segments."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes().startswith(b"ray::Caller"):
                found.append(int(file.parent.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.fixture(autouse=True)
def without_actors() -> None:
    """Wait until the memory of earlier tests' segments is free."""
    gc.collect()
    wait_until(lambda: not actors())


def test_answers_are_those_of_a_local_search(nodes: Any, folder: Path) -> None:
    local = Searcher.open(folder)
    spread = Searcher.open(folder, engine="ray", cluster=Cluster(nodes.address))
    assert spread.opened.index.details["engine"] == "ray"
    queries = drawn(1_300, 1)  # several batches
    for asked, where in ((queries, None), (queries[:7], "label = odd"), (queries[:1], None)):
        for k in (1, 10):
            wanted, found = (each.hits(asked, k, where) for each in (local, spread))
            np.testing.assert_array_equal(found.rows, wanted.rows)
            np.testing.assert_array_equal(found.distances, wanted.distances)
            assert found.share == 1
    assert spread.search(queries[:3], 5) == local.search(queries[:3], 5)
    wait_until(lambda: len(actors()) >= PARTS)
    del spread
    wait_until(lambda: not actors())


def test_an_evaluation_on_the_nodes_is_that_of_one_machine(nodes: Any, folder: Path) -> None:
    sides = ["--queries", str(folder.parent / "set"), "--database", str(folder.parent / "set")]
    command = [sys.executable, "-m", "cli.main", "eval", *sides, "--index", str(folder), "--json"]
    engine = ["--engine", "ray", "--address", nodes.address, "--replicas", "2"]
    documents = [
        json.loads(subprocess.run([*command, *more], capture_output=True, check=True).stdout)
        for more in ([], engine)
    ]
    assert documents[0] == documents[1]
    assert documents[0]["queries"] == sides[1]


def test_search_options_reach_the_nodes(nodes: Any, folder: Path) -> None:
    options = {"ef": 11}
    local = Searcher.open(folder, options)
    spread = Searcher.open(folder, options, engine="ray", cluster=Cluster(nodes.address))
    queries = drawn(200, 2)
    np.testing.assert_array_equal(spread.hits(queries, 10).rows, local.hits(queries, 10).rows)
    with pytest.raises(BadInput, match="option m cannot be changed"):
        open_on_cluster(folder, {"m": 8}, Cluster(nodes.address))


def test_no_request_fails_while_workers_of_two_replicas_are_killed(
    nodes: Any, folder: Path
) -> None:
    local = Searcher.open(folder)
    spread = open_on_cluster(folder, None, Cluster(nodes.address, replicas=2)).index
    queries = drawn(40, 3)
    wanted = local.hits(queries, 10).rows
    done, failures, stop = [0], [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                assert (spread.search(queries, 10).rows == wanted).all()
                done[0] += 1
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = done[0]
            wait_until(lambda: len(actors()) == 2 * PARTS)
            os.kill(actors()[0], signal.SIGKILL)
            wait_until(lambda: done[0] > before + 20)  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert done[0] > 60


def test_a_lost_node_is_told_and_its_segment_comes_back_elsewhere(nodes: Any, folder: Path) -> None:
    local = Searcher.open(folder)
    lost = nodes.add_node(**NODE | {"memory": 3 << 30})  # the largest: it gets segments
    wait_until(lambda: len(alive()) == 4)
    cluster = Cluster(nodes.address, tolerance=Tolerance(partial=True, seconds=20))
    spread = Searcher.open(folder, engine="ray", cluster=cluster)
    queries = drawn(5, 4)
    nodes.remove_node(lost, allow_graceful=False)
    wait_until(lambda: spread.hits(queries, 10).share == pytest.approx(2 / 3))
    notes: list[str] = []
    spread.search(queries, 10, note=notes.append)
    assert notes in ([], ["66.7% of the rows were searched: nodes of the cluster do not answer"])
    wait_until(lambda: spread.hits(queries, 10).share == 1)
    np.testing.assert_array_equal(spread.hits(queries, 10).rows, local.hits(queries, 10).rows)


def test_a_cluster_without_memory_is_refused(nodes: Any, folder: Path) -> None:
    with pytest.raises(NoCluster, match=r"fewer replicas|give 1 to"):
        open_on_cluster(folder, None, Cluster(nodes.address, replicas=9))


def held(index: Path, **other: Any) -> SegmentsOnNode:
    inside = index / IndexFacts.read(index).parts[0].folder
    usual = SegmentsOnNode({str(inside): sha256_of(inside / INDEX)}, None, version("retr"))
    return replace(usual, **other)


def test_a_node_with_other_files_or_another_version_is_found_out(folder: Path) -> None:
    answer = held(folder)(Request(drawn(2, 0), 3))
    assert answer is not None and answer.rows.shape == (2, 3)
    with pytest.raises(BadData, match="is missing; put the index where every node"):
        held(folder, sha256={"/nowhere": "0" * 64})(None)
    with pytest.raises(BadData, match="has other files than where the search started"):
        held(folder, sha256=dict.fromkeys(held(folder).sha256, "0" * 64))(None)
    with pytest.raises(Mismatch, match=r"retr has version .*, and 9\.9 where the search started"):
        held(folder, version="9.9")(None)


def test_a_missing_segment_is_one_line(nodes: Any, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    shutil.rmtree(copied / IndexFacts.read(copied).parts[1].folder)
    with pytest.raises(BadData, match="is missing; index again"):
        open_on_cluster(copied, None, Cluster(nodes.address))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_the_service_loses_no_request_to_a_lost_worker_or_a_new_version(
    nodes: Any, folder: Path, tmp_path: Path
) -> None:
    index = tmp_path / "served"
    shutil.copytree(folder, index)
    port, other = free_port(), tmp_path / "set"
    command = [sys.executable, "-m", "cli.main", "serve", "--index", str(index), "--watch"]
    command += ["--engine", "ray", "--address", nodes.address, "--replicas", "2", "--json"]
    command += ["--embeddings", str(folder.parent / "set"), "--embeddings", str(other)]
    service = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    own, *near = Searcher.open(folder).search(drawn(ROWS, 0)[:1], 6)[0]
    first = [hit.id for hit in near]
    url = f"http://127.0.0.1:{port}/api/items/{quote(own.id, safe='')}/neighbors?k=5"
    stop, failures, seen = threading.Event(), list[str](), list[list[str]]()

    def load() -> None:
        while not stop.is_set():
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    seen.append([hit["id"] for hit in json.load(answer)["hits"]])
            except OSError as error:
                failures.append(repr(error))

    assert service.stdout is not None
    try:
        assert json.loads(service.stdout.readline())["indices"] == ["served"]
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(seen) > 20 or bool(failures))
            assert not failures
            os.kill(actors()[0], signal.SIGKILL)
            before = len(seen)
            wait_until(lambda: len(seen) > before + 20)
            assert {*map(tuple, seen)} == {tuple(first)}
            changed = embeddings(other, drawn(ROWS, 9), shard_rows=ROWS // PARTS)
            build_segments([changed], "hnsw", index, PARTS)
            wait_until(lambda: seen[-1] != first)
            before = len(seen)
            wait_until(lambda: len(seen) > before + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(30)
    second = [hit.id for hit in Searcher.open(index).search(drawn(ROWS, 9)[:1], 6)[0]][1:]
    assert {*map(tuple, seen)} == {tuple(first), tuple(second)}, "no answer of both versions"
    assert not failures
    assert service.returncode == 0

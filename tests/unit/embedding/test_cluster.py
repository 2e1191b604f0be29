"""Code for clusters, tested without one: workers that fit, addresses, nodes that differ."""

import builtins
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.toy import Toy
from retrieval.embedding import early_shards, ray_worker
from retrieval.embedding.early_shards import EarlyShard, Queue
from retrieval.embedding.encode import facts_of, finished
from retrieval.embedding.plan import Plan, plan_of
from retrieval.embedding.ray_worker import Names, ShardMaker, ShardTask
from retrieval.errors import BadInput, Mismatch, NoCluster
from retrieval.images import Columns, Source, open_source
from retrieval.images.folders.listing import listed
from retrieval.runtime import ray as cluster
from retrieval.runtime.ray import WorkerPlan, check, plan_workers
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype
from retrieval.storage.sets.shard_writer import ShardWriter


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


@pytest.mark.parametrize(
    ("nodes", "device", "limit", "plan"),
    [
        ([node(2)], "auto", None, WorkerPlan(1, 2)),
        ([node(2)], "auto", 1, WorkerPlan(2, 1)),
        ([node(2)], "auto", 64, WorkerPlan(1, 2)),
        ([node(1)] * 3, "auto", None, WorkerPlan(3, 1)),
        ([node(0), node(4)], "auto", None, WorkerPlan(1, 4)),  # a head that only manages
        ([node(4), node(8), node(8)], "auto", None, WorkerPlan(5, 4)),
        ([node(1), node(64), node(64)], "auto", None, WorkerPlan(2, 64)),  # not 129 of one CPU
        ([node(4), node(16, 4)], "auto", None, WorkerPlan(4, 4, 1)),
        ([node(16, 4)], "cuda", 2, WorkerPlan(4, 2, 1)),
        (
            [node(2, 4)],
            "auto",
            None,
            WorkerPlan(2, 1, 1),
        ),  # a GPU without a CPU has nobody to feed it
        ([node(16, 4)], "cpu", None, WorkerPlan(1, 16)),
    ],
)
def test_workers_are_as_many_as_fit(
    nodes: list[Mapping[str, float]], device: str, limit: int | None, plan: WorkerPlan
) -> None:
    assert plan_workers(nodes, device, limit) == plan


def test_a_cluster_without_what_was_asked_for_is_refused() -> None:
    with pytest.raises(NoCluster, match="no node of the cluster has both a GPU"):
        plan_workers([node(4)], "cuda")
    with pytest.raises(NoCluster, match="no node of the cluster offers a CPU"):
        plan_workers([{}, node(0)], "auto")


@contextmanager
def server(greeting: bytes | None) -> Iterator[str]:
    """The address of a server that says this to everybody, or accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            connection, _ = listening.accept()
            with connection, suppress(ConnectionError):
                if greeting is not None:
                    connection.sendall(greeting)
                connection.recv(1000)
                connection.recv(1000)  # until who called hangs up

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{port}"
        thread.join()


def test_an_address_at_which_no_cluster_speaks_is_refused_soon() -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        free = f"127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(NoCluster, match=f"no Ray cluster at {free}: Connection refused; give HOST"):
        check(free)
    with server(None) as silent, pytest.raises(NoCluster, match="no answer in 3 s; give HOST:PORT"):
        check(silent)
    web_server = server(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with web_server as web, pytest.raises(NoCluster, match="is not a Ray cluster; give HOST:PORT"):
        check(web)
    with server(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as grpc:
        assert check(grpc) == grpc
    for wrong in ("head", "head:", ":6379", "head:0", "head:65536", "head:x"):
        with pytest.raises(NoCluster, match="is not an address; give HOST:PORT"):
            check(wrong)
    with pytest.raises(NoCluster, match="is a Ray Client address"):
        check("ray://head:10001")
    assert time.monotonic() - began < 30  # also on a busy machine; Ray tries for minutes


def test_the_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert check(None) == "auto"
    assert check("local") is None


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"Ray is not installed; pip install 'retr\[ray\]'"):
        check(None)


def test_a_node_without_retr_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    call = cluster.caller()(ray.cloudpickle.dumps(len))
    row = {"item": ray.cloudpickle.dumps("abc")}
    assert cluster.value_of(call(row)) == 3
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "retrieval":
            raise ModuleNotFoundError("No module named 'retrieval'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    reply = call(row)
    monkeypatch.undo()
    with pytest.raises(NoCluster, match=r"retr is not installed .*; install the same"):
        cluster.value_of(reply)
    with pytest.raises(NoCluster, match=r"^on node 10\.0\.0\.9: retr is not installed"):
        cluster.value_of({**reply, "node": "10.0.0.9"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.0"}, "retr has version .*, not 0.0; install"),
        ({"run": Path("elsewhere")}, "is not the run's output folder; name a folder"),
        (
            {"names": "others"},
            "has other images than on the machine that started the run",
        ),
        ({"first": "elsewhere/0.png"}, "is read from .*, not from elsewhere/0.png; name a folder"),
        ({"encoder": "b" * 64}, "encoder toy differs from .*; install the same"),
    ],
)
def test_a_worker_refuses_what_is_not_as_it_is_to_the_driver(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(early_shards, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(ray_worker, "limit_threads", lambda count: None)
    monkeypatch.setenv("RETR_MAX_MEGAPIXELS", "")  # the worker sets it
    early = tmp_path / "made" / "early.partial"
    early.mkdir(parents=True)
    (early / "run").touch()
    source = open_source(str(photos))
    encoder = Toy()
    if fingerprint := change.pop("encoder", None):
        encoder.fingerprint = fingerprint
    facts = facts_of(source, encoder, Dtype.FLOAT32, 10)
    given: dict[str, Any] = {
        "names": Names(str(photos), "toy"),
        "plan": Plan(range(len(source)), 0, facts),
        "first": next(source.items()).path,
        "folder": early,
        "run": early / "run",
        "threads": 1,
        "attempts": 2,
        "version": ray_worker.version("retr"),
    }
    if change.get("names"):
        (photos / "red" / "0.png").unlink()
        change = {}
    elif not change and not fingerprint:
        pytest.fail("nothing was changed")
    with pytest.raises(Mismatch, match=message):
        ShardMaker(ShardTask(**(given | change)))(0)
    assert [path.name for path in early.iterdir()] == ["run"]


def test_workers_read_the_columns_that_were_chosen(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_worker, "limit_threads", lambda count: None)
    contents = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:4]]
    columns = {"image": contents, "thumb": contents[::-1], "kind": ["a", "b", "c", "d"]}
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    chosen = Columns("thumb", "kind")
    source = open_source(str(file), columns=chosen)
    early = tmp_path / "made" / "early.partial"
    early.mkdir(parents=True)
    (early / "run").touch()
    facts = facts_of(source, Toy(), Dtype.FLOAT32, 10)
    names = Names(str(file), "toy", columns=chosen)
    first = next(source.items()).path
    plan = Plan(range(len(source)), 0, facts)
    task = ShardTask(names, plan, first, early, early / "run", 1, 2, ray_worker.version("retr"))
    ShardMaker(task)(0)
    (shard,) = early.rglob("*.parquet/*/*.parquet")
    rows = pq.read_table(shard)
    assert rows["label"].to_pylist() == ["a", "b", "c", "d"]
    assert rows["path"].to_pylist() == [f"{file}#thumb#{row}" for row in range(4)]


def test_names_hold_for_processes_in_other_folders(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETR_DATA_DIR", "data")
    absolute = Names("photos", "toy").absolute()
    assert absolute.source == str(photos)
    assert absolute.data_dir == tmp_path / "data"
    assert Names("photos/*/1*.png", "toy").absolute().source == f"{photos}/*/1*.png"
    assert Names("digits", "toy").absolute().source == "digits"
    assert Names("./digits", "toy").absolute().source == str(tmp_path / "digits")
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.json").touch()
    for spec, expected in {
        "pretrained:resnet18": "pretrained:resnet18",
        "siamese:mine": f"siamese:{tmp_path}/mine",
        "mine": f"{tmp_path}/mine",
        "toy": "toy",
    }.items():
        assert Names("digits", spec).absolute().encoder == expected


def made_by_a_worker(source: Source, photos: Path, folder: Path) -> tuple[Queue, EarlyShard]:
    """The driver's queue, and the outcome of the one shard that a worker made."""
    facts = facts_of(source, Toy(), Dtype.FLOAT32, 100)
    writer = ShardWriter(folder, facts)
    plan = plan_of(source, writer)
    queue = Queue(writer, plan, lambda done, total: None, listed(source))
    (queue.folder / "run").touch()
    task = ShardTask(
        names=Names(str(photos), "toy"),
        plan=plan,
        first=next(source.items()).path,
        folder=queue.folder,
        run=queue.folder / "run",
        threads=1,
        attempts=2,
        version=ray_worker.version("retr"),
        source=pickle.loads(pickle.dumps(source)),  # noqa: S301
    )
    return queue, EarlyShard.of_json(json.loads(ShardMaker(task)(0)))


def test_a_worker_takes_the_list_of_the_driver(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_worker, "limit_threads", lambda count: None)
    source = open_source(str(photos))
    expected = [item.id for item in source.items()]
    (photos / "green" / "5.png").unlink()
    (photos / "green" / "5a.png").write_bytes((photos / "green" / "4.png").read_bytes())
    queue, outcome = made_by_a_worker(source, photos, tmp_path / "made")
    assert outcome.differing == (15,)
    assert [(Path(s.path).name, s.reason) for s in outcome.skipped] == [("5.png", "no such file")]
    queue.add(outcome)
    manifest = finished(queue.writer)
    assert (manifest.rows, manifest.skipped) == (29, 1)
    rows = open_embeddings(tmp_path / "made").rows()["id"].to_pylist()
    assert rows == [name for name in expected if name != "green/5.png"]


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_node_that_sees_other_images_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(ray_worker, "limit_threads", lambda count: None)
    monkeypatch.setattr(early_shards, "SETTLE_SECONDS", 0.0)
    source, file = open_source(str(photos)), photos / "green" / "5.png"
    status, content = file.stat(), file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes((photos / "red" / "1.png").read_bytes())
    queue, outcome = made_by_a_worker(source, photos, tmp_path / "made")
    file.write_bytes(content)  # the driver sees this content
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(Mismatch, match="has other images on a node than on this machine"):
        queue.add(outcome)

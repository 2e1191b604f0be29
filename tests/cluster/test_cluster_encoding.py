"""Encoding on a Ray cluster of three nodes that loses workers and nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import patient
import pytest
from PIL import Image

from retrieval.embedding.encode import EARLY_FOLDER, encode_source
from retrieval.embedding.on_ray import encode_on_cluster
from retrieval.embedding.ray_worker import Names
from retrieval.errors import BadInput, Mismatch, WorkerFailed
from retrieval.images import open_source
from retrieval.registry import open_encoder
from retrieval.runtime.ray import connected, run_tasks
from retrieval.storage.sets.embeddings import open_embeddings

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",  # Ray leaves files and processes to the garbage collector
    "ignore::DeprecationWarning:ray",
    "ignore::FutureWarning:ray",
)

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
IMAGES = 120
SHARD_IMAGES = 10
TIMEOUT_SECONDS = 60

Progress = Callable[[int, int], None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run a cluster of three nodes with the plug-in `patient`; check that all its processes end."""
    from ray.cluster_utils import Cluster

    plugins = tmp_path_factory.mktemp("plugins")
    patient.install(plugins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugins))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(str(plugins))
        # The cluster notices a dead node after 2 s, not 15.
        health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
        health |= {"health_check_timeout_ms": 1000, "health_check_failure_threshold": 2}
        head = NODE | {"include_dashboard": False, "_system_config": health}
        made = Cluster(initialize_head=True, head_node_args=head)
        session = made.head_node.get_session_dir_path()
        try:
            made.add_node(**NODE)
            made.add_node(**NODE)
            with connected(made.address):
                yield made
        finally:
            made.shutdown()
    wait_until(lambda: not processes(session))


def processes(text: str) -> list[int]:
    """Return the ids of other processes whose command line holds the text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue  # it has ended
        if text in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def workers(cluster: Any) -> list[int]:
    """Return the ids of the processes of this cluster that make shards."""
    raylets = processes(cluster.head_node.get_session_dir_path())
    found = []
    for pid in processes("ray::MapWorker"):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/stat").read_text()
            parent = int(status.rpartition(")")[2].split()[1])
            if parent in raylets:
                found.append(pid)
    return found


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of 120 images of 4 labels, two of them damaged."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        file = root / f"label {number % 4}" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(file)
    (root / "label 0" / "8.png").write_bytes(b"")
    (root / "label 3" / "111.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def expected(cluster: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the embeddings of the images by the local engine."""
    folder = tmp_path_factory.mktemp("local") / "made"
    encode_local("0.05", pictures, folder)
    made = open_embeddings(folder).manifest
    assert (made.rows, made.skipped, len(made.shards)) == (IMAGES - 2, 2, 12)
    return folder


def ignore(done: int, total: int) -> None:
    """Ignore the progress."""


def encode_local(behavior: str, pictures: Path, folder: Path, progress: Progress = ignore) -> None:
    encode_source(
        open_source(str(pictures)),
        open_encoder(f"patient:{behavior}"),
        folder,
        shard_images=SHARD_IMAGES,
        progress=progress,
    )


def encode(
    behavior: str, pictures: Path, folder: Path, progress: Progress = ignore, attempts: int = 5
) -> None:
    """Encode on the connected cluster."""
    names = Names(str(pictures), f"patient:{behavior}")
    encode_on_cluster(
        names,
        open_source(names.source),
        open_encoder(names.encoder),
        folder,
        shard_images=SHARD_IMAGES,
        progress=progress,
        attempts=attempts,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files in a folder but the lock. A subfolder is an error."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def once(images: int, act: Callable[[], object]) -> Progress:
    """Return a progress that calls `act` once, when this many images are done."""
    acted = False

    def progress(done: int, total: int) -> None:
        nonlocal acted
        if done >= images and not acted:
            acted = True
            act()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_network_gives_the_same_vectors_on_a_worker(cluster: Any, tmp_path: Path) -> None:
    names = Names("digits", "siamese-quick", split="test", limit=200)
    source = open_source(names.source, names.split, limit=names.limit)
    encoder = open_encoder(names.encoder, "cpu")
    encode_source(source, encoder, tmp_path / "local", shard_images=200)
    seen: list[tuple[int, int]] = []
    encode_on_cluster(
        names,
        source,
        encoder,
        tmp_path / "made",
        shard_images=200,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / "made") == contents(tmp_path / "local")
    assert seen == [(0, 200), (200, 200)]


def test_a_killed_worker_loses_no_shard(
    cluster: Any, pictures: Path, expected: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        at_work = workers(cluster)
        assert len(at_work) == 3
        os.kill(at_work[0], signal.SIGKILL)

    encode("0.05", pictures, tmp_path / "made", once(30, kill))
    assert contents(tmp_path / "made") == contents(expected)


@pytest.mark.slow
def test_a_lost_node_loses_no_shard(
    cluster: Any, pictures: Path, expected: Path, tmp_path: Path
) -> None:
    node = cluster.add_node(**NODE)

    def lose() -> None:
        cluster.remove_node(node, allow_graceful=False)

    encode("0.05", pictures, tmp_path / "made", once(30, lose))
    assert contents(tmp_path / "made") == contents(expected)


@pytest.mark.slow
def test_a_folder_that_changed_is_brought_up_to_date(
    cluster: Any, pictures: Path, tmp_path: Path
) -> None:
    source = tmp_path / "pictures"
    shutil.copytree(pictures, source)
    encode("0", source, tmp_path / "made")
    for number in range(25):
        color = (number, 99, 9)
        Image.new("RGB", (9, 9), color).save(source / "label 1" / f"new{number}.png")
    (source / "label 2" / "2.png").unlink()
    (source / "label 3" / "3.png").rename(source / "label 3" / "renamed.png")
    encode("0", source, tmp_path / "made")
    encode("0", source, tmp_path / "fresh")
    made, fresh = (
        sorted(
            repr(row)
            for table in open_embeddings(tmp_path / name).tables()
            for row in table.to_pylist()
        )
        for name in ("made", "fresh")
    )
    assert made == fresh


@pytest.mark.slow
def test_each_engine_resumes_the_run_of_the_other(
    cluster: Any, pictures: Path, expected: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        encode_local("0.05", pictures, folder, once(20, interrupt))
    kept = {p.name: p.stat().st_ino for p in folder.glob("part-*")}
    assert kept
    with pytest.raises(KeyboardInterrupt):
        encode("0.05", pictures, folder, once(60, interrupt))
    wait_until(lambda: not workers(cluster))  # the interrupted run has ended
    encode_local("0.05", pictures, folder)
    assert contents(folder) == contents(expected)
    for name, inode in kept.items():
        assert (folder / name).stat().st_ino == inode


@pytest.mark.slow
def test_shards_written_out_of_order_are_kept(
    cluster: Any, pictures: Path, expected: Path, tmp_path: Path
) -> None:
    """A driver that is killed leaves shards whose predecessors are missing."""
    folder = tmp_path / "made"
    shutil.copytree(expected, folder)
    manifest = open_embeddings(expected).manifest
    for number in (7, 8, 9, 10):
        name = f"part-{number:05}.parquet"
        attempt = folder / EARLY_FOLDER / name / "attempt"
        attempt.mkdir(parents=True)
        (folder / name).rename(attempt / name)
        document = {
            "facts": manifest.facts.to_json(),
            "number": number,
            "attempt": "attempt",
            "shard": asdict(manifest.shards[number]),
            "skipped": [],
        }
        match number:
            case 8:
                (attempt / name).write_bytes(b"half of it")
            case 9:
                document = {}
            case 10:
                document["facts"] = manifest.facts.to_json() | {"dim": 4}
        (attempt / "outcome.json").write_text(json.dumps(document))
    kept = (
        (folder / EARLY_FOLDER / "part-00007.parquet" / "attempt" / "part-00007.parquet")
        .stat()
        .st_ino
    )
    encode("0.05", pictures, folder)
    assert contents(folder) == contents(expected)
    assert (folder / "part-00007.parquet").stat().st_ino == kept


@pytest.mark.parametrize(
    ("behavior", "kind", "message"),
    [
        ("nan", BadInput, "the embedding of 0.png is not finite as float32; correct the encoder"),
        (
            "deadly",
            WorkerFailed,
            "workers died in 2 attempts to encode images 0 to 0 of {}; check their node's memory "
            "and Ray's logs, and remove the image that crashes them",
        ),
    ],
)
def test_a_failure_on_a_worker_is_one_line(
    cluster: Any, pictures: Path, tmp_path: Path, behavior: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "single").mkdir()
    shutil.copy(pictures / "label 0" / "0.png", tmp_path / "single")
    with pytest.raises(kind) as caught:
        encode(behavior, tmp_path / "single", tmp_path / "made", attempts=2)
    assert str(caught.value) == message.format(tmp_path / "single")
    assert not (tmp_path / "made" / "manifest.json").exists()


def test_a_node_with_another_version_of_the_encoder_is_refused(
    cluster: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patient.VERSION, "2")  # in this process, but not on the nodes
    with pytest.raises(Mismatch, match="encoder patient:0 differs from that of the run"):
        encode("0", pictures, tmp_path / "made")


def test_tasks_return_results_and_survive_killed_workers(cluster: Any, tmp_path: Path) -> None:
    assert sorted(run_tasks(patient.half, range(0, 20, 2))) == [(i, float(i)) for i in range(10)]
    with pytest.raises(Mismatch) as caught:
        list(run_tasks(patient.half, [2, 3]))
    assert str(caught.value) == "3 is odd; give an even number"
    with pytest.raises(WorkerFailed, match=r"^TypeError: .*; run again with --debug to see where"):
        list(run_tasks(patient.half, [None]))  # type: ignore[list-item]
    assert list(run_tasks(patient.die_once, [tmp_path / "marker"])) == [(0, "marker")]


@pytest.mark.slow
def test_a_killed_command_is_resumed(
    cluster: Any, pictures: Path, expected: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    script = str(Path(__file__).parent / "small_shards.py")
    command = [sys.executable, script, "encode", str(pictures), "--encoder", "patient:0.05"]
    command += ["--engine", "ray", "--address", cluster.address, "--out", str(folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: (folder / "part-00002.parquet").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        process.kill()
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert finished.returncode == 0, finished
    assert finished.stderr.startswith("warning: 2 images could not be read; "), finished
    assert len(finished.stderr.splitlines()) == 1, finished
    assert json.loads(finished.stdout)["shards"] == 12
    assert contents(folder) == contents(expected)

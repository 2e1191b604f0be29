"""Connect to a Ray cluster, or start Ray on this machine, and call functions on its nodes.

Functions are pickled by name, so retr must be installed on every node. Their caller is pickled by
value, so that a node without retr can report this. It returns errors instead of raising them, since
Ray would retry them, or wrap them in its own.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar, cast

from retrieval import errors
from retrieval.errors import BadInput, NoCluster, RetrError, WorkerFailed
from retrieval.runtime.threads import thread_limit, usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Reply = Mapping[str, Any]

CONNECT_TIMEOUT_SECONDS = 9.0
HEAD_TIMEOUT_SECONDS = 3.0  # for the head's first bytes
MAX_RETRIES = 4  # after the loss of a worker or node
MIN_USED_CPUS = 0.9  # share of the cluster's CPUs that large workers must use
OBJECT_STORE_BYTES = 128 << 20  # memory for a Ray started here; workers return a few lines
HTTP2_CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP2_SETTINGS_FRAME = 4  # type of the first frame that either side sends (RFC 9113, 3.4)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster for the time of the context. Use an existing connection if there is one.

    address: `HOST:PORT` of the head of a cluster that this machine is a node of; `auto` for the
        cluster that runs here; None for RAY_ADDRESS, or if it is not set, for a Ray that is started
        on this machine and ends with the context.

    Raises BadInput if Ray is not installed, and NoCluster within 10 s if the connection fails.
    """
    ray = library()
    if ray.is_initialized():
        yield
        return
    try:
        connect(address)
        yield
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    """Connect as `connected` does, until the process ends. Raises its errors."""
    ray = library()
    if ray.is_initialized():
        return
    address = check(address)
    if address is None:
        _start(ray)
    else:
        _join(ray, address)


def check(address: str | None) -> str | None:
    """Return the address that `connected` will use; None to start Ray for this run.

    Raises BadInput if Ray is not installed. Raises NoCluster within 3 s if no cluster's head
    answers at the address with an HTTP/2 settings frame, as gRPC servers do.
    """
    if find_spec("ray") is None:
        raise BadInput("Ray is not installed; pip install 'retr[ray]'")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return None
    if address != "auto":
        _greet(address)
    return address


def _greet(address: str) -> None:
    if "://" in address:
        raise NoCluster(
            f"{address} is a Ray Client address, which shares no files; run this on a node of the "
            "cluster and give HOST:PORT of its head"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise NoCluster(f"'{address}' is not an address; give HOST:PORT of the cluster's head")
    remedy = "give HOST:PORT of a head that 'ray start --head' started"
    try:
        with socket.create_connection(
            (host.strip("[]"), int(port)), HEAD_TIMEOUT_SECONDS
        ) as connection:
            connection.settimeout(HEAD_TIMEOUT_SECONDS)
            connection.sendall(HTTP2_CLIENT_PREFACE)
            greeting = connection.recv(9)
    except TimeoutError:
        raise NoCluster(
            f"no Ray cluster at {address}: no answer in {HEAD_TIMEOUT_SECONDS:g} s; {remedy}"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise NoCluster(f"no Ray cluster at {address}: {reason}; {remedy}") from None
    if len(greeting) < 4 or greeting[3] != HTTP2_SETTINGS_FRAME:
        raise NoCluster(f"the server at {address} is not a Ray cluster; {remedy}")


def library() -> Any:
    """Return the module ray, with Ray Data. Raises BadInput if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Hide GPUs from workers without one, in this version of Ray and the next.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput(f"Ray is not installed ({error}); pip install 'retr[ray]'") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _start(ray: Any) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except Exception as error:
        raise NoCluster(
            f"cannot start Ray ({first_line(error)}); see its logs in /tmp/ray, or use "
            "--engine local"
        ) from error


def _join(ray: Any, address: str) -> None:
    """Connect in a thread, which may time out: Ray itself would wait for minutes."""
    failures: list[Exception] = []
    given_up = threading.Event()

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            failures.append(error)
        if given_up.is_set():
            ray.shutdown()

    thread = threading.Thread(target=join, name="join-ray", daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_SECONDS)
    where = "on this machine" if address == "auto" else f"at {address}"
    if thread.is_alive():
        given_up.set()
        why = f"no answer in {CONNECT_TIMEOUT_SECONDS:g} s"
    elif failures:
        why = first_line(failures[0]).partition(". ")[0]
    else:
        return
    raise NoCluster(
        f"no Ray cluster {where} ({why}); give the head of a cluster that this machine is a node "
        "of, with the same Ray and the same Python"
    )


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Number of workers that fit on a cluster, and the CPUs and GPUs of each."""

    workers: int
    cpus: int
    gpus: int = 0


def cluster_workers(device: str) -> WorkerPlan:
    """Return `plan_workers` for the connected cluster."""
    ray = library()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return plan_workers(nodes, device, thread_limit())


def plan_workers(
    nodes: Sequence[Mapping[str, float]], device: str, limit: int | None = None
) -> WorkerPlan:
    """Return the workers for nodes with these resources, `CPU` and `GPU`.

    If a node has GPUs, there is one worker for each, unless `device` is cpu. Otherwise workers are
    as large as possible while at most a tenth of the CPUs stays idle. `limit` bounds the CPUs of
    each worker.

    Raises NoCluster if cuda is requested and no node has a GPU, or if no node has a CPU.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    most = limit or max(cpus, default=0)
    with_gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU")]
    if device != "cpu" and with_gpus:
        each = max(1, min([cpu // gpu for gpu, cpu in with_gpus] + [most]))
        workers = sum(min(gpu, cpu // each) for gpu, cpu in with_gpus)
        if workers:
            return WorkerPlan(workers, each, 1)
    if device == "cuda":
        raise NoCluster("no node of the cluster has both a GPU and a CPU; use --device cpu")

    def used(each: int) -> int:
        return each * sum(cpu // each for cpu in cpus)

    sizes = sorted({min(cpu, most) for cpu in cpus if cpu > 0})
    if not sizes:
        raise NoCluster("no node of the cluster offers a CPU; start nodes with --num-cpus")
    enough = MIN_USED_CPUS * max(map(used, sizes))
    each = max(size for size in sizes if used(size) >= enough)
    return WorkerPlan(used(each) // each, each)


def map_on_workers(
    function: Callable[[int], str], numbers: Sequence[int], plan: WorkerPlan
) -> Iterator[str]:
    """Yield the result of `function` for each number, as it completes, by actors of a Ray Dataset.

    Each actor has its own copy of the function, which may keep files open. If an actor or
    its node is lost, the actor restarts on a node with free CPUs, and its number is retried.

    Raises the function's own error if it is one of retr's, WorkerFailed for others.
    """
    ray = library()
    actors = min(plan.workers, len(numbers))
    items = [ray.cloudpickle.dumps(number) for number in numbers]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    data.context.enable_progress_bars = False
    data.context.execution_no_progress_timeout_s = -1  # a shard may take its time
    mapped = data.map(
        caller(),
        fn_constructor_args=(ray.cloudpickle.dumps(function),),
        # One number at a time: numbers queued at a lost actor would wait until it restarts.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
    )
    rows = mapped.iter_rows()
    try:
        for reply in rows:
            yield cast(str, value_of(reply))
    except RetrError:
        raise
    except Exception as error:
        raise _given_up(error) from error


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    cpus: int = 1,
    retries: int = MAX_RETRIES,
) -> Iterator[tuple[int, Result]]:
    """Yield (position of the item, result of `function`) as each completes, by tasks of Ray.

    The function must be importable where retr is installed. A task whose worker or node is lost is
    retried up to MAX_RETRIES times.

    Raises the function's own error if it is one of retr's, WorkerFailed for others.
    """
    ray = library()
    payload = ray.cloudpickle.dumps(function)
    call_on_node = caller()

    def call(item: bytes) -> Reply:
        return cast(Reply, call_on_node(payload)({"item": item}))

    task = ray.remote(num_cpus=cpus, max_retries=retries)(call)
    capacity = int(ray.cluster_resources().get("CPU", 1)) // cpus
    waiting = iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            # Twice as many as can run, so that workers do not wait; not all, there may be millions.
            while len(running) < 2 * max(1, capacity) and (entry := next(waiting, None)):
                packed = ray.cloudpickle.dumps(entry[1])
                running[task.remote(packed)] = entry[0]
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                position = running.pop(reference)
                yield position, cast(Result, value_of(ray.get(reference)))
    except RetrError:
        raise
    except ray.exceptions.RayError as error:
        raise _given_up(error) from error
    finally:
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference, force=True)


def caller() -> type[Any]:
    """Return the class that calls a function on a node. It is local, and so pickled by value."""

    class Caller:
        def __init__(self, payload: bytes) -> None:
            self.payload = payload
            self.function: Any = None

        def __call__(self, row: dict[str, bytes]) -> dict[str, Any]:
            import traceback

            import ray
            from ray import cloudpickle

            def reply(value: Any = "", kind: str = "", text: str = "") -> dict[str, Any]:
                if not kind:
                    return {"value": value, "kind": ""}
                node, trace = ray.util.get_node_ip_address(), traceback.format_exc()
                return {"value": value, "kind": kind, "text": text, "trace": trace, "node": node}

            try:
                import retrieval  # noqa: F401
            except ImportError as error:
                remedy = "install the same retr[ray] on every node"
                return reply(kind="NoCluster", text=f"retr is not installed ({error}); {remedy}")
            if self.function is None:
                try:
                    self.function = cloudpickle.loads(self.payload)
                except (ImportError, AttributeError) as error:
                    text = f"retr has another version ({error}); install the same on every node"
                    return reply(kind="Mismatch", text=text)
            try:
                return reply(self.function(cloudpickle.loads(row["item"])))
            except Exception as error:
                return reply(kind=type(error).__name__, text=str(error))

    return Caller


def value_of(reply: Reply) -> Any:
    """Return the value of the reply, or its error raised."""
    if not reply["kind"]:
        return reply["value"]
    here = reply["node"] == library().util.get_node_ip_address()
    where = "" if here else f"on node {reply['node']}: "
    kind = getattr(errors, reply["kind"], None)
    if isinstance(kind, type) and issubclass(kind, RetrError):
        # The classes have different constructors; the message is set without them.
        error = kind.__new__(kind)
        Exception.__init__(error, where + reply["text"])
    else:
        detail = " ".join(reply["text"].split()) or "no message"
        error = WorkerFailed(
            f"{where}{reply['kind']}: {detail}; run again with --debug to see where"
        )
    error.add_note(reply["trace"])
    raise error


def _given_up(error: Exception) -> WorkerFailed:
    return WorkerFailed(
        f"Ray failed ({type(error).__name__}: {first_line(error)}); see Ray's logs, and run the "
        "same command again to continue"
    )


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

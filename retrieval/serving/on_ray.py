"""Run the service on a Ray cluster: Ray Serve starts its processes, and nodes hold the indices.

The process that starts the service holds the indices' segments and hands them to the processes
that answer requests. For a new version of an index, new processes replace these one after the
other, so that no request fails.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput, NoCluster, RetrError
from retrieval.index.folder import OpenIndex, is_index
from retrieval.index.on_ray import Cluster, HeldIndex, hold
from retrieval.runtime.ray import connect, first_line, library
from retrieval.runtime.ray_actors import nodes
from retrieval.serving.app import make_app
from retrieval.serving.collection import WATCH_SECONDS, Collection, free_names
from retrieval.serving.served import version_of
from retrieval.storage.places import Place, place_of

NAME = "retr"  # Ray Serve knows the application by it
PROCESSES_PER_NODE = 2  # at most
RUNNING_REQUESTS = 16  # a process with more of them gets another one beside it
MAX_REQUESTS = 64  # a process answers at most these at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """Settings of the processes: what they serve, and to whom; see `Collection` and `make_app`."""

    indices: tuple[HeldIndex, ...]
    embeddings: tuple[str, ...]
    images: tuple[str, ...]
    device: str
    bound: str
    host: str
    token: str


class HttpProcess:
    """A process that answers requests over HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        held = {index.folder: index for index in service.indices}

        def open_folder(folder: Place) -> OpenIndex:
            return held[str(folder)].opened()

        self._collection = Collection(
            [*map(place_of, held)],
            [*map(place_of, service.embeddings)],
            service.device,
            service.images,
            open_folder,
        )
        threading.Thread(target=self._collection.open_encoders, daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, as Ray Serve asks for it."""
        service = self._service
        return make_app(self._collection, service.bound, service.host, service.token)


class ClusterService:
    """The service, as the process that starts it sees it."""

    def __init__(
        self,
        folders: Sequence[Place],
        cluster: Cluster,
        port: int,
        service: Service,
    ) -> None:
        """Hold the indices in these folders, and start the service at the port.

        service: without indices.

        Raises the errors of `hold`, and NoCluster if Ray Serve does not start.
        """
        if not folders:
            raise BadInput("there is no index to serve; name one with --index")
        self._cluster = cluster
        self._folders = [each.resolve() if isinstance(each, Path) else each for each in folders]
        connect(cluster.address)
        self._service = replace(service, indices=tuple(map(self._held, self._folders)))
        self._serve = _ray_serve()
        try:
            self._serve.start(
                proxy_location="EveryNode", http_options={"host": service.bound, "port": port}
            )
            self._run()
        except Exception as error:
            self.stop()
            raise NoCluster(
                f"Ray Serve does not start ({first_line(error)}); see Ray's logs"
            ) from error

    @property
    def names(self) -> list[str]:
        """The names of the indices, as `Collection` gives them."""
        return free_names(self._folders)

    @property
    def rows(self) -> int:
        """Number of rows of all indices."""
        return sum(part.rows for index in self._service.indices for part in index.segments)

    def _held(self, folder: Place) -> HeldIndex:
        return hold(folder, None, self._cluster)

    def _run(self) -> None:
        """Start the processes, or replace those of the version before, a few at a time."""
        scaling = {
            "min_replicas": 1,
            "max_replicas": PROCESSES_PER_NODE * len(nodes()),
            "target_ongoing_requests": RUNNING_REQUESTS,
        }
        deployment = self._serve.deployment(
            name=NAME,
            autoscaling_config=scaling,
            max_ongoing_requests=MAX_REQUESTS,
            ray_actor_options={"num_cpus": 0},
        )(self._serve.ingress()(HttpProcess))
        self._serve.run(deployment.bind(self._service), name=NAME, route_prefix="/")

    def refresh(self) -> list[str]:
        """Serve new versions of the indices, and return their folders.

        An index that cannot be opened is logged, and the version before it is kept.
        """
        changed, indices = [], []
        for folder, index in zip(self._folders, self._service.indices, strict=True):
            indices.append(index)
            try:
                is_index(folder)  # finishes an interrupted publication
                if version_of(folder) == index.version:
                    continue
                indices[-1] = self._held(folder)
            except (RetrError, OSError) as error:
                log.warning("cannot open the new version of %s: %s", folder, error)
                continue
            changed.append(str(folder))
        if changed:
            self._service = replace(self._service, indices=tuple(indices))
            self._run()
        return changed

    def wait(self, watch: bool) -> None:
        """Serve until the process is interrupted. watch: also new versions of the indices."""
        while True:
            time.sleep(WATCH_SECONDS)
            if watch:
                for folder in self.refresh():
                    log.info("index %s has changed", folder)

    def stop(self) -> None:
        """Stop the service."""
        self._serve.shutdown()


def _ray_serve() -> Any:
    """Return the module ray.serve. Raises BadInput if it is not installed."""
    library()
    try:
        from ray import serve
    except ImportError as error:
        raise BadInput(
            f"Ray Serve is not installed ({first_line(error)}); pip install 'retr[ray]'"
        ) from None
    for name in ("ray.serve", "ray.serve.replica"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return serve

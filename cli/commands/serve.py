"""`retr serve`: a web page and an API to search by images and words."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.onnx_cache import keep_for_searches
from cli.options import Device, EngineOptions
from cli.output import Output, plural
from cli.quiet import quiet_libraries

if TYPE_CHECKING:
    import socket

    from retrieval.index.on_ray import Cluster
    from retrieval.storage.places import Place
    from retrieval.workspace import Workspace

TOKEN_VARIABLE = "RETR_TOKEN"
MAX_WAITING_CONNECTIONS = 2048  # connections not accepted yet


IndexOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="Index folder to serve. Repeatable.  [default: the last one built]",
    ),
]

HostOption = Annotated[
    str,
    typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines."),
]

PortOption = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")
]

EmbeddingsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="Embeddings folder that an index was built from, for the map. Repeatable.  "
        "[default: those in the workspace]",
    ),
]

ImagesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="Folder whose images may be shown, including images that its links lead to. "
        "Repeatable.  [default: the common folder of the index's images, without links that "
        "leave it]",
    ),
]


WatchOption = Annotated[
    bool,
    typer.Option("--watch", help="Serve new versions of the indices as 'retr index' writes them."),
]


@command(threads=True, max_megapixels=True, root=True)
def serve(
    output: Output,
    workspace: "Workspace",
    index: IndexOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    embeddings: EmbeddingsOption = None,
    images: ImagesOption = None,
    watch: WatchOption = False,
    device: Device = "auto",
    *,
    spread: EngineOptions,
) -> None:
    """Serve a web page and an API to search by images and words.

    The API is described at /docs.

    If RETR_TOKEN is set, clients must send it as a bearer token, or as the password in a browser.

    With --engine ray, the nodes of a cluster hold the indices, and Ray Serve answers on every node.

    Example: retr serve --index photos-index --port 8000
    """
    from retrieval.storage.places import place_of
    from retrieval.workspace import Role

    folders = [place_of(folder) for folder in index or ()]
    if not folders:
        folders = [workspace.needed(Role.INDEX, "retr index", "--index")]
    known = sorted(path for path in (workspace.folder / "embeddings").glob("*") if path.is_dir())
    sets = [*map(place_of, embeddings or ()), *known]
    address = _Address(host, port)
    if (cluster := spread.cluster()) is None:
        _serve_here(output, address, folders, sets, device, images or [], watch)
    else:
        _serve_on_ray(output, address, cluster, folders, sets, device, images or [], watch)


@dataclass(frozen=True, slots=True)
class _Address:
    """Address and port of the service."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


def _serve_here(
    output: Output,
    asked: _Address,
    folders: "list[Place]",
    embeddings: "list[Place]",
    device: str,
    images: list[str],
    watch: bool,
) -> None:
    """Serve by this process, until it is interrupted."""
    import uvicorn

    from retrieval.serving.app import make_app
    from retrieval.serving.collection import Collection

    _allow_many_connections()
    listening = _listening(asked.host, asked.port)
    with listening:
        collection = Collection(folders, embeddings, device, images)
        bound, port = listening.getsockname()[:2]
        count = sum(len(served.rows) for served in collection.served.values())
        token = os.environ.get(TOKEN_VARIABLE, "")
        app = make_app(collection, bound, asked.host, token)
        settings = uvicorn.Config(app, log_level="warning", access_log=False)

        def open_encoders() -> None:
            for encoder in collection.open_encoders():
                keep_for_searches(output, encoder)

        threading.Thread(target=open_encoders, daemon=True).start()
        if watch:
            collection.watch()
        _say(output, count, _Address(asked.host, int(port)), [*collection.served])
        with suppress(KeyboardInterrupt):  # uvicorn may raise it again after it stopped
            uvicorn.Server(settings).run(sockets=[listening])


def _serve_on_ray(
    output: Output,
    asked: _Address,
    cluster: "Cluster",
    folders: "list[Place]",
    embeddings: "list[Place]",
    device: str,
    images: list[str],
    watch: bool,
) -> None:
    """Serve by a Ray cluster, until this process is interrupted."""
    from retrieval.errors import BadInput
    from retrieval.serving.on_ray import ClusterService, Service

    if asked.port == 0:
        raise BadInput("--port 0 takes any free port, and the nodes of a cluster need one; name it")
    _listening(asked.host, asked.port).close()  # Ray Serve would not say that it is taken
    token = os.environ.get(TOKEN_VARIABLE, "")
    sets = tuple(map(str, embeddings))
    service = Service((), sets, tuple(images), device, asked.host, asked.host, token)
    running = ClusterService(folders, cluster, asked.port, service)
    try:
        _say(output, running.rows, asked, running.names)
        with suppress(KeyboardInterrupt):
            running.wait(watch)
    finally:
        with quiet_libraries(output.debug):  # Ray complains of the controller that it ends
            running.stop()


def _say(output: Output, rows: int, address: _Address, indices: list[str]) -> None:
    output.say(f"{plural(rows, 'image')} at {address.url}   (Ctrl+C stops)")
    output.document({"url": address.url, "indices": [*indices]})


def _allow_many_connections() -> None:
    """Raise the limit of open files to the maximum that the system allows."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listening(host: str, port: int) -> "socket.socket":
    """Return a socket bound to the address. Raises BadInput if the address is taken."""
    import socket

    from retrieval.errors import BadInput

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(MAX_WAITING_CONNECTIONS)  # early clients wait
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot listen on {host}:{port} ({reason}); give another --port") from None
    return bound

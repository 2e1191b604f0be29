"""A model hub on loopback, which answers as the real one does, with faults on demand."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest

LARGE = (".safetensors", ".bin")  # stored elsewhere, and reached by a redirect


@dataclass
class Hub:
    """Repositories of a hub, and the faults of its server.

    elsewhere: the server's other address, where large files are. references: commit of each
    (repository, branch or tag). commits: files of each (repository, commit). gated: repositories
    that deny access. cuts: number of downloads of large files that end in the middle. delay:
    seconds before each answer. requests: those that came.
    """

    url: str = ""
    elsewhere: str = ""
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: int = 0
    delay: float = 0
    requests: list[str] = field(default_factory=list)

    def push(self, repository: str, files: dict[str, bytes], reference: str = "main") -> str:
        """Commit these files, all that the repository then has. Return the commit."""
        facts = sorted((name, sha256(body).hexdigest()) for name, body in files.items())
        commit = sha256(repr((repository, facts)).encode()).hexdigest()[:40]
        self.references[repository, reference] = commit
        self.commits[repository, commit] = files
        return commit

    def push_folder(self, repository: str, folder: Path, reference: str = "main") -> str:
        """Commit the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return self.push(repository, files, reference)

    def connect(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make huggingface_hub in this process use the hub, with a cache of its own."""
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        time.sleep(self.hub.delay)
        path = unquote(self.path.partition("?")[0]).strip("/")
        if path.startswith("cdn/"):
            self.large_file(path.removeprefix("cdn/"), head)
        elif path.startswith("api/models/"):
            self.facts(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            self.resolve(*path.split("/resolve/", 1), head=head)
        else:
            self.send(200, {}, b"", head)

    def commit_of(self, repository: str, revision: str) -> str | None:
        """Return the commit; answer with the hub's error if there is none."""
        if repository in self.hub.gated:
            self.send(401, {"X-Error-Code": "GatedRepo"})
        elif not any(repository == known for known, _ in self.hub.commits):
            self.send(401, {"X-Error-Code": "RepoNotFound"})
        else:
            commit = self.hub.references.get((repository, revision), revision)
            if (repository, commit) in self.hub.commits:
                return commit
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        return None

    def facts(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        if commit := self.commit_of(repository, revision or "main"):
            facts = {"id": repository, "sha": commit, "siblings": []}
            self.send(200, {}, json.dumps(facts).encode())

    def resolve(self, repository: str, rest: str, head: bool) -> None:
        revision, _, name = rest.rpartition("/")
        commit = self.commit_of(repository, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit}
        body = self.hub.commits[repository, commit].get(name)
        if body is None:
            self.send(404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        digest = sha256(body).hexdigest()
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
            self.send(302, headers | {"Location": f"{self.hub.elsewhere}/cdn/{digest}"})
        else:
            self.send(200, headers | {"ETag": f'"{digest[:32]}"'}, body, head)

    def large_file(self, digest: str, head: bool) -> None:
        every = [body for files in self.hub.commits.values() for body in files.values()]
        whole = next(body for body in every if sha256(body).hexdigest() == digest)
        wanted = self.headers.get("Range")
        if not wanted:
            self.send(200, {"ETag": f'"{digest}"'}, whole, head)
            return
        first = int(wanted.removeprefix("bytes=").partition("-")[0])
        span = {"Content-Range": f"bytes {first}-{len(whole) - 1}/{len(whole)}"}
        self.send(206, span, whole[first:], head)

    def send(
        self, status: int, headers: dict[str, str], body: bytes = b"", head: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if head:
            return
        if self.path.startswith("/cdn/") and self.hub.cuts:
            self.hub.cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *message: object) -> None:
        """Print nothing."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty hub while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.elsewhere = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

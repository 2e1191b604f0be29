"""What comes in, kept within bounds: bodies, requests at once, and hosts that are asked for.

One ASGI middleware around all else, so that what it refuses costs no memory. It also counts and
times requests for `GET /metrics`, and answers in JSON whatever goes wrong.
"""

import asyncio
import base64
import hmac
import ipaddress
import json
import logging
import os
import time
from collections.abc import Collection
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 20 * 2**20
"""The largest body of a request."""
DISCARDED_BYTES = 10 * BODY_BYTES
"""Up to here a body that is too large is read and thrown away, so that its sender hears why."""
BODY_SECONDS = 60.0
"""In which a body must have come. Who sends it byte by byte keeps nobody else from an answer."""
SPOOLED_BYTES = 2**18
"""Of a body that are kept in memory; a larger one waits on disk."""
CHUNK_BYTES = 2**16
AT_ONCE = 64
"""Requests that are answered at once; a body comes before its request takes a place."""
MOST_WAITING = 1000
"""Requests that send their bodies or wait for a place; those beyond are told to come again."""
WAITING_SECONDS = 30.0
"""After which a request that waits for a place is told so, too."""
BUSY = "too many requests at once; come again in a second"
HEALTH = "/healthz"
FREE = frozenset({HEALTH, "/metrics"})  # who asks whether a busy service lives must be told
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
POLICY = b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
INLINE = b"; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
"""What the page of the API needs; it shows nothing that a user has sent."""

log = logging.getLogger(__name__)


class Measures:
    """What `GET /metrics` tells, in Prometheus's terms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "retr_requests", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "retr_request_seconds", "Seconds to an answer.", ("path",), registry=self.registry
        )
        self.search_seconds = Histogram(
            "retr_search_seconds",
            "Seconds of the search in the index alone.",
            ("index",),
            buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            registry=self.registry,
        )
        self.encode_seconds = Histogram(
            "retr_encode_seconds",
            "Seconds to decode and encode an image.",
            ("index",),
            registry=self.registry,
        )
        self.rows = Gauge("retr_rows", "Rows of an index.", ("index",), registry=self.registry)
        self.at_once = Gauge(
            "retr_requests_at_once", "Requests being answered.", registry=self.registry
        )


class Limits:
    """The middleware. hosts: names that may be asked for; none for any. token: what a caller must
    know; empty where anyone may ask."""

    def __init__(
        self, app: ASGIApp, measures: Measures, hosts: Collection[str] = (), token: str = ""
    ) -> None:
        self.app = app
        self.measures = measures
        self.hosts = hosts
        self.token = token
        self.running = 0
        self.waiting = 0
        self.room: asyncio.Semaphore | None = None  # of the loop that serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        started = False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                policy = POLICY + (INLINE if scope["path"] == "/docs" else b"")
                own = (*HEADERS, (b"content-security-policy", policy))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        counted = scope["path"] not in FREE
        self.running += counted
        self.measures.at_once.set(self.running)
        try:
            await self._admit(scope, receive, watched)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await _refuse(watched, 500, "the service failed; its log says where")
        finally:
            self.running -= counted
            self.measures.at_once.set(self.running)
            path = getattr(scope.get("route"), "path", "other")
            self.measures.requests.labels(path, str(status)).inc()
            self.measures.seconds.labels(path).observe(time.perf_counter() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer who may ask, when there is room."""
        headers = dict(scope["headers"])
        host = _host(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts and host not in self.hosts:
            await _refuse(send, 400, f"this is not '{host}'; ask for the address that was printed")
            return
        if headers.get(b"sec-fetch-site") == b"cross-site" and scope["path"].startswith("/api/"):
            await _refuse(send, 400, "pages of other hosts may not ask; open the page that is here")
            return
        if self.token and scope["path"] != HEALTH and not _knows(headers, self.token):
            await _refuse(send, 401, "this service wants its token; send it as a bearer token")
            return
        if scope["path"] in FREE:
            await self.app(scope, receive, send)
            return
        if self.waiting >= MOST_WAITING:
            await _refuse(send, 503, BUSY, retry=1)
            return
        self.waiting += 1
        try:
            with SpooledTemporaryFile(SPOOLED_BYTES) as body:
                if await _received(scope, headers, receive, send, body):
                    await self._answer(scope, receive, send, body)
        finally:
            self.waiting -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: IO[bytes]) -> None:
        """Let the service answer a request whose body is there, when it is its turn."""
        if self.room is None:
            self.room = asyncio.Semaphore(AT_ONCE)
        try:
            await asyncio.wait_for(self.room.acquire(), WAITING_SECONDS)
        except TimeoutError:
            await _refuse(send, 503, BUSY, retry=1)
            return
        left = body.seek(0, os.SEEK_END)
        body.seek(0)

        async def replayed() -> Message:
            nonlocal left
            if left < 0:
                return await receive()  # that the caller has gone
            chunk = body.read(CHUNK_BYTES)
            left -= len(chunk)
            more = left > 0
            left = left if more else -1
            return {"type": "http.request", "body": chunk, "more_body": more}

        try:
            await self.app(scope, replayed, send)
        finally:
            self.room.release()


async def _received(
    scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send, body: IO[bytes]
) -> bool:
    """Whether the whole body has come, into `body`; the caller is told why where it has not."""
    length = headers.get(b"content-length", b"0").decode("latin-1")
    if not (length.isascii() and length.isdigit()):
        await _refuse(send, 400, "the content's length is no number; send it anew")
        return False
    until = time.monotonic() + BODY_SECONDS
    try:
        if int(length) > BODY_BYTES:
            if int(length) <= DISCARDED_BYTES:
                await _discard(receive, until)
            await _refuse(send, 413, _too_large())
            return False
        is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        if scope["method"] == "POST" and not is_form:
            await _refuse(send, 415, "send the image as multipart/form-data, in the field 'image'")
            return False
        more = True
        while more:
            message = await _timely(receive, until)
            if message["type"] != "http.request":
                return False  # the caller has gone
            body.write(message.get("body", b""))
            more = message.get("more_body", False)
            if body.tell() > BODY_BYTES:
                if more:
                    await _discard(receive, until)
                await _refuse(send, 413, _too_large())
                return False
    except TimeoutError:
        await _refuse(send, 408, f"the body did not come within {BODY_SECONDS:.0f} s; send it anew")
        return False
    return True


async def _timely(receive: Receive, until: float) -> Message:
    return await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))


def loopback_hosts(bound: str, host: str = "") -> frozenset[str]:
    """The names under which a service on this address is asked for, where it is this machine's.

    A page of another host whose name was made to lead here could read what is served otherwise.
    """
    names = {"localhost", "127.0.0.1", "::1", bound, host.lower()} - {""}
    return frozenset(names) if ipaddress.ip_address(bound).is_loopback else frozenset()


def _knows(headers: dict[bytes, bytes], token: str) -> bool:
    """Whether the token is sent: as a bearer's, or as a password, which browsers ask for."""
    scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(sent.strip(), token.encode())


def _host(header: str) -> str:
    """The name in a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


async def _discard(receive: Receive, until: float) -> None:
    """Read the rest of a body, and keep none of it."""
    seen = 0
    while seen <= DISCARDED_BYTES:
        message = await _timely(receive, until)
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def _refuse(send: Send, status: int, error: str, retry: int | None = None) -> None:
    body = json.dumps({"error": error}).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if retry is not None:
        headers.append((b"retry-after", str(retry).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="retr", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large() -> str:
    return f"the image is larger than {BODY_BYTES // 2**20} MB; send a smaller one"

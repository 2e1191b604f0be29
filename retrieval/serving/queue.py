"""The queue of requests: a request waits for one of a limited number of places.

Its body is received in full before it takes a place, so that slow senders block no other request.
"""

import asyncio
import os
import time
from tempfile import SpooledTemporaryFile
from typing import IO

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.serving.refusal import refuse

MAX_BODY_BYTES = 20 * 2**20
"""Maximum size of a request's body."""
MAX_DISCARDED_BYTES = 10 * MAX_BODY_BYTES
"""Bytes of a body that is too large to read and discard, so that its sender reads the answer."""
BODY_TIMEOUT_SECONDS = 60.0
"""Maximum time to receive a request's body."""
SPOOLED_BYTES = 2**18
"""Bytes of a body to keep in memory; the rest goes to a temporary file."""
REPLAY_CHUNK_BYTES = 2**16
MAX_RUNNING_REQUESTS = 64
MAX_WAITING_REQUESTS = 1000
"""Requests that send their bodies or wait for a place; others are refused with 503."""
QUEUE_TIMEOUT_SECONDS = 30.0
"""Maximum time to wait for a place."""
HEALTH_PATH = "/healthz"
UNQUEUED_PATHS = frozenset({HEALTH_PATH, "/metrics"})
"""Paths that are answered at once, so that a busy service still reports that it is alive."""


class RequestQueue:
    """ASGI middleware that bounds the requests that wait, and those that run."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.waiting = 0
        self.places: asyncio.Semaphore | None = None  # made in the event loop that serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNQUEUED_PATHS:
            await self.app(scope, receive, send)
            return
        if self.waiting >= MAX_WAITING_REQUESTS:
            await _refuse_busy(send)
            return
        self.waiting += 1
        try:
            with SpooledTemporaryFile(SPOOLED_BYTES) as body:
                if await _received(scope, receive, send, body):
                    await self._answer(scope, receive, send, body)
        finally:
            self.waiting -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: IO[bytes]) -> None:
        """Let the service answer a request whose body has come, when a place is free."""
        if self.places is None:
            self.places = asyncio.Semaphore(MAX_RUNNING_REQUESTS)
        try:
            await asyncio.wait_for(self.places.acquire(), QUEUE_TIMEOUT_SECONDS)
        except TimeoutError:
            await _refuse_busy(send)
            return
        left = body.seek(0, os.SEEK_END)
        body.seek(0)

        async def replayed() -> Message:
            nonlocal left
            if left < 0:
                return await receive()  # the caller's disconnect
            chunk = body.read(REPLAY_CHUNK_BYTES)
            left -= len(chunk)
            more = left > 0
            left = left if more else -1
            return {"type": "http.request", "body": chunk, "more_body": more}

        try:
            await self.app(scope, replayed, send)
        finally:
            self.places.release()


async def discard_body(scope: Scope, receive: Receive) -> None:
    """Read the rest of a body and discard it, if it is not longer than MAX_DISCARDED_BYTES."""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_DISCARDED_BYTES:
        return
    until = time.monotonic() + BODY_TIMEOUT_SECONDS
    seen = 0
    while seen <= MAX_DISCARDED_BYTES:
        try:
            message = await _receive_until(receive, until)
        except TimeoutError:
            return
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def _received(scope: Scope, receive: Receive, send: Send, body: IO[bytes]) -> bool:
    """Receive the body into `body`; return whether it is complete. Send an error if it is not."""
    kind = Headers(scope=scope).get("content-type", "").lower()
    if scope["method"] == "POST" and not kind.startswith("multipart/form-data"):
        await refuse(
            send, 415, "the request is not a form; send multipart/form-data with image or text"
        )
        return False
    until = time.monotonic() + BODY_TIMEOUT_SECONDS
    more = True
    while more:
        try:
            message = await _receive_until(receive, until)
        except TimeoutError:
            error = f"the body did not arrive within {BODY_TIMEOUT_SECONDS:.0f} s; send it again"
            await refuse(send, 408, error)
            return False
        if message["type"] != "http.request":
            return False  # the caller disconnected
        body.write(message.get("body", b""))
        more = message.get("more_body", False)
    return True


async def _receive_until(receive: Receive, until: float) -> Message:
    return await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))


async def _refuse_busy(send: Send) -> None:
    await refuse(send, 503, "too many requests at once; retry in a second", retry_after="1")

"""Errors of the service as JSON, also those of its libraries, and headers of every answer."""

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval.serving.queue import MAX_BODY_BYTES, discard_body
from retrieval.serving.refusal import refuse

SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
PAGE_POLICY = b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
DOCS_POLICY = PAGE_POLICY + b"; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
"""The page of the API needs inline code; it shows nothing that a user has sent."""

PLAIN_ERRORS = {
    400: "unknown host name; use the address that 'retr serve' printed",
    413: f"the request is larger than {MAX_BODY_BYTES // 2**20} MB; send smaller images",
}
"""What to say in place of the plain text of Starlette's middlewares, by status."""

log = logging.getLogger(__name__)


class JsonErrors:
    """ASGI middleware that answers with JSON if Starlette's middlewares refuse in plain text.

    It also answers 500 where the service fails, and adds the security headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False
        ended = False
        refused: int | None = None

        async def received() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        async def secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                policy = DOCS_POLICY if scope["path"] == "/docs" else PAGE_POLICY
                own = (*SECURITY_HEADERS, (b"content-security-policy", policy))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        async def translated(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and _is_plain_error(message):
                refused = message["status"]
            elif refused is None:
                await secured(message)

        try:
            await self.app(scope, received, translated)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await refuse(secured, 500, "the service failed; its log says where")
            return
        if refused == 413 and not ended:
            await discard_body(scope, receive)  # else the sender would not read the answer
        if refused is not None:
            await refuse(secured, refused, PLAIN_ERRORS[refused])


def _is_plain_error(message: Message) -> bool:
    kind = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] in PLAIN_ERRORS and kind.startswith("text/plain")

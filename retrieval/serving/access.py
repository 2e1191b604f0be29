"""Who may ask: callers that know the token, and no pages of other hosts."""

import base64
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from retrieval.serving.queue import HEALTH_PATH
from retrieval.serving.refusal import refuse


class Access:
    """ASGI middleware that refuses pages of other hosts, and callers without the token.

    token: empty where anyone may ask.
    """

    def __init__(self, app: ASGIApp, token: str = "") -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            is_cross_site = headers.get("sec-fetch-site") == "cross-site"
            if is_cross_site and scope["path"].startswith("/api/"):
                error = "pages of other hosts may not use this API; open the service's own page"
                await refuse(send, 400, error)
                return
            if self.token and scope["path"] != HEALTH_PATH and not _knows(headers, self.token):
                await refuse(
                    send,
                    401,
                    "the token is missing or wrong; send it as a bearer token",
                    www_authenticate='Basic realm="retr", charset="UTF-8"',
                )
                return
        await self.app(scope, receive, send)


def loopback_hosts(bound: str, host: str = "") -> list[str]:
    """Return the host names to accept on this address; all, ["*"], if it is not loopback.

    On loopback, another host's page could otherwise read the service through a name of its own
    that resolves to this machine (DNS rebinding).
    """
    if not ipaddress.ip_address(bound).is_loopback:
        return ["*"]
    address = f"[{bound}]" if ":" in bound else bound
    return sorted({"localhost", "127.0.0.1", "[::1]", address, host.lower()} - {""})


def _knows(headers: Headers, token: str) -> bool:
    """Return whether the token is sent: as a bearer's, or as a password, as browsers do."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    sent = text.encode("latin-1")
    if scheme.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(sent.strip(), token.encode())

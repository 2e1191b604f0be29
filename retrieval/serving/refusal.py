"""An error of the service, as JSON."""

import json
from typing import Any

from starlette.types import Send


async def refuse(send: Send, status: int, error: str, **headers: str) -> None:
    """Send `{"error": …}`. headers: further ones, with `_` for `-`."""
    body = json.dumps({"error": error}).encode()
    sent: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})

"""Requests to the service, for tests."""

import io
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

HERE = "http://127.0.0.1:8000"


def png(color: tuple[int, int, int] = (210, 40, 40), side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def searched(client: TestClient, content: bytes, kind: str = "image/png", **form: Any) -> Any:
    return client.post("/api/search", files={"image": ("a.png", content, kind)}, data=form)


def asked(client: TestClient, *fields: tuple[str, Any], address: str = "/api/search") -> Any:
    """Send a form of these fields: text, or the bytes of an image."""
    return client.post(
        address,
        files=[
            (
                name,
                ("a.png", value, "image/png") if isinstance(value, bytes) else (None, str(value)),
            )
            for name, value in fields
        ],
    )

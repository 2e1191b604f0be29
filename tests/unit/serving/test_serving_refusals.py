"""The service: refused requests, limits and access."""

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.errors import UnknownName
from retrieval.images import open_source
from retrieval.serving import queue
from retrieval.serving.app import make_app
from retrieval.serving.collection import Collection
from retrieval.serving.folders import Folders
from tests.uploads import HERE, png, searched

BOMB = zlib.compress(bytes(1000), 9)


def bomb() -> bytes:
    """A PNG of 30,000 × 30,000 pixels in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    size = (30_000).to_bytes(4, "big")
    header = size + size + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", BOMB) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "kind", "form", "status", "error"),
    [
        (b"no image at all", "image/png", {}, 400, "not an image"),
        (b"", "image/png", {}, 400, "cannot read image that was sent"),
        (png()[:60], "image/png", {}, 400, "cannot read image that was sent"),
        (bomb(), "image/png", {}, 400, "pixels"),
        (png(), "text/plain", {}, 415, "text/plain is not an image"),
        (png(), "image/png", {"k": 0}, 400, "k is 0; give 1 to 30"),
        (png(), "image/png", {"k": 31}, 400, "k is 31; give 1 to 30"),
        (png(), "image/png", {"k": "many"}, 400, "k: "),
        (png(), "image/png", {"index": "none"}, 404, "unknown index 'none'"),
        (png(), "image/png", {"where": "label=dog"}, 404, "unknown label in the index 'dog'"),
        (png(), "image/png", {"where": "label"}, 400, "cannot read the filter"),
        (png(), "image/png", {"effort": "3"}, 400, "exact has no option"),
        (png(), "image/png", {"index": "ivf", "effort": "5"}, 400, "n_probe is '5'; give one of 1"),
        (bytes(queue.MAX_BODY_BYTES), "image/png", {}, 413, "larger than 20 MB"),
        (bytes(50_000_000), "image/png", {}, 413, "larger than 20 MB"),
    ],
)  # fmt: skip
def test_bad_searches(
    client: TestClient, content: bytes, kind: str, form: dict[str, Any], status: int, error: str
) -> None:
    answer = searched(client, content, kind, **form)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert error in answer.json()["error"]
    assert searched(client, png()).status_code == 200, "the service stays up"


@pytest.mark.parametrize(
    ("address", "status", "error"),
    [
        ("/api/items/none/neighbors", 404, "no row of the index has the id 'none'"),
        ("/api/items/..%2F..%2Fetc%2Fpasswd/image", 404, "no row of the index has the id"),
        ("/api/items/red/0.png/image?size=5000", 400, "size: "),
        ("/api/items/red/0.png/neighbors?k=31", 400, "k is 31"),
        ("/api/items/red/0.png/neighbors?k=x", 400, "k: "),
        ("/api/items?limit=1000", 400, "limit: "),
        ("/api/items?where=label%3Ddog", 404, "unknown label"),
        ("/api/map?method=tsne", 404, "unknown method 'tsne'"),
        ("/api/nothing", 404, "Not Found"),
        ("/api/map?seed=-1", 400, "seed: "),
    ],
)
def test_bad_addresses(client: TestClient, address: str, status: int, error: str) -> None:
    answer = client.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert error in answer.json()["error"]


def test_requests_without_a_form_or_an_image_are_refused(client: TestClient) -> None:
    assert client.post("/api/search", json={"k": 3}).status_code == 415
    assert client.post("/api/search", content=png()).status_code == 415
    answer = client.post("/api/search", files={"other": ("a", b"b")})
    assert answer.status_code == 400
    assert answer.json()["error"] == "the query is empty; send image, text, not, like or unlike"
    answer = client.post("/api/search", files={"image": (None, "no file")})
    assert (answer.status_code, answer.json()["error"][:7]) == (400, "image: ")
    assert client.delete("/api/items").status_code == 405


def test_a_body_without_a_length_is_counted(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(30):
            yield bytes(2**20)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    began = time.monotonic()
    answer = client.post("/api/search", content=parts(), headers=kind)
    assert (answer.status_code, "larger than 20 MB" in answer.json()["error"]) == (413, True)
    assert time.monotonic() - began < queue.BODY_TIMEOUT_SECONDS / 2, "it waits for no further body"


def test_unknown_host_names_are_refused(client: TestClient, collection: Collection) -> None:
    assert client.get("/api/indices", headers={"host": "localhost:1"}).status_code == 200
    assert client.get("/api/indices", headers={"host": "[::1]:1"}).status_code == 200
    assert client.get("/api/indices", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/api/indices", headers={"sec-fetch-site": "cross-site"}).status_code == 400
    assert client.get("/api/indices", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    with TestClient(make_app(collection, "0.0.0.0"), base_url="http://photos.lan") as others:
        assert others.get("/api/indices").status_code == 200
    with TestClient(make_app(collection, "127.0.1.1", "MyHost"), base_url="http://myhost") as named:
        assert named.get("/api/indices").status_code == 200
        assert named.get("/api/indices", headers={"host": "evil.example"}).status_code == 400


def test_pictures_have_no_metadata(client: TestClient, photos: Path) -> None:
    Image.new("RGB", (900, 600)).save(photos / "blue" / "0.png", "JPEG", comment=b"my street")
    told = client.get("/api/items/blue/0.png/image", params={"size": 100})
    assert told.status_code == 200 and b"my street" not in told.content


def test_an_encoder_that_does_not_open_is_the_service_s_fault(
    client: TestClient, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise UnknownName("encoder", "toy", ())

    monkeypatch.setattr("retrieval.embedding.embed.open_encoder", broken)
    assert collection.open_encoders() == [] and collection.ready.is_set()
    answer = searched(client, png())
    assert (answer.status_code, "unknown encoder" in answer.json()["error"]) == (500, True)


def test_slow_body_times_out(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BODY_TIMEOUT_SECONDS", -1.0)
    assert searched(client, png()).status_code == 408


def test_full_queue_returns_503_with_retry_after(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING_REQUESTS", 0)
    answer = searched(client, png())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200


def test_internal_error_is_json(
    client: TestClient, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(collection[None], "items", broken)
    answer = client.get("/api/items")
    assert answer.status_code == 500
    assert answer.json() == {"error": "the service failed; its log says where"}


def test_token_is_required(collection: Collection) -> None:
    app = make_app(collection, token="secret words")
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer "},
            {"authorization": "secret words"},
            {"authorization": "Basic !!"},
            {"authorization": "Basic c2VjcmV0IHdvcmRz"},  # no colon: a name without a password
        ):
            for path in ("/", "/api/indices", "/metrics", "/docs"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic")
                assert "token" in answer.json()["error"]
        assert client.get("/healthz").status_code in (200, 503)
        for sent in (
            "Bearer secret words",
            "bearer secret words",
            "Basic YW55OnNlY3JldCB3b3Jkcw==",
        ):
            assert client.get("/api/indices", headers={"authorization": sent}).status_code == 200


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, photos: Path) -> None:
    secret = tmp_path / "elsewhere" / "secret.png"
    secret.parent.mkdir()
    secret.write_bytes(png((1, 2, 3)))
    (photos / "red" / "link.png").symlink_to(secret)
    (photos / ".kept").mkdir()
    (photos / ".kept" / "1.png").write_bytes(png((1, 2, 3)))
    (photos / "red" / "inside.png").symlink_to(photos / ".kept" / "1.png")
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "exact")

    def status(name: str, images: list[str]) -> int:
        collection = Collection([tmp_path / "exact"], images=images)
        with TestClient(make_app(collection), base_url=HERE) as client:
            return client.get(f"/api/items/red%2F{name}/image?size=64").status_code

    assert status("link.png", []) == 404
    assert status("inside.png", []) == 200
    assert status("1.png", []) == 200
    assert status("link.png", [str(photos), str(secret.parent)]) == 200
    assert status("1.png", [str(secret.parent)]) == 404
    # A folder whose name begins alike is another.
    assert status("1.png", [str(photos)[:-1]]) == 404


@pytest.mark.parametrize(
    ("paths", "roots"),
    [
        (["/a/b/1.png", "/a/b/c/2.png", "/a/b/x.png"], ["/a/b/"]),
        (["/a/b/1.png"], ["/a/b/"]),
        (["s3://bucket/p/1.png", "s3://bucket/p/q/1.png"], ["s3://bucket/p/"]),
        (["/a/1.png", None], ["/a/"]),
        (["/a/b/1.png", "s3://bucket/p/1.png", "/a/2.png"], ["/a/", "s3://bucket/p/"]),
        ([None], []),
    ],
)
def test_the_folder_that_images_share(paths: list[str | None], roots: list[str]) -> None:
    assert Folders.of(pa.chunked_array([paths], pa.string())).roots == roots

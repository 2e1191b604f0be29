"""Functions of any bytes, for fuzzing: each returns, or raises for a fault in retr.

A typed error of retr is a right answer. Checksums are computed from the bytes, so that the code
after their check reads the bytes too.
"""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from encoders.toy import Toy
from encoders.training.recipe import read_recipe
from retrieval import build_index, open_embeddings, open_index
from retrieval.contracts import Framing
from retrieval.embedding.encode import encode_source
from retrieval.errors import RetrError
from retrieval.images import decode, frame, load, open_source, read_image
from retrieval.index.folder import INDEX, IndexFacts
from retrieval.pairs.calibration import Calibration
from retrieval.storage.cards import CARD, Card
from retrieval.storage.files import sealed, sha256_of

Target = Callable[[bytes], None]
FRAMING = Framing(16)
CALIBRATION = "calibration.json"


def image(data: bytes) -> None:
    """Decode the bytes as an image."""
    with suppress(RetrError):
        pixels = frame(decode(data, "fuzzed", FRAMING), FRAMING)
        assert pixels.shape == (16, 16, 3)


def parquet(data: bytes) -> None:
    """Read the bytes as a Parquet file with images."""
    _rows("images.parquet", data)


def arrow(data: bytes) -> None:
    """Read the bytes as an Arrow stream or file with images."""
    _rows("images.arrow", data)


def tar(data: bytes) -> None:
    """Read the bytes as a WebDataset archive."""
    _rows("images.tar", data)


def _rows(name: str, data: bytes) -> None:
    file = _home() / name
    file.write_bytes(data)
    with suppress(RetrError):
        read_image(f"{file}#1")
    with suppress(RetrError):
        for item in islice(open_source(str(file)).items(), 1000):
            with suppress(RetrError):
                load(item, FRAMING)


def manifest(data: bytes) -> None:
    """Read the bytes as the manifest of a set of embeddings."""
    path = _set() / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(_sealed(data))
        with suppress(RetrError):
            rows, vectors = open_embeddings(_set()).read()
            assert len(rows) == len(vectors)
    finally:
        path.write_bytes(whole)


def card(data: bytes) -> None:
    """Read the bytes as the card of a trained encoder, and as a calibration."""
    home = _home()
    for name in (CARD, CALIBRATION):
        (home / name).write_bytes(_sealed(data))
    with suppress(RetrError):
        Card.read(home)
    with suppress(RetrError):
        found = Calibration.read(home / CALIBRATION)
        assert found.curve.probability(np.array([0.5])).shape == (1,)


def index_json(data: bytes) -> None:
    """Read the bytes as index.json of an index."""
    path = _index("exact") / INDEX
    whole = path.read_bytes()
    try:
        path.write_bytes(_sealed(data))
        with suppress(RetrError):
            opened = open_index(_index("exact"))
            assert len(opened.index) == len(opened.rows)
    finally:
        path.write_bytes(whole)


def hnsw(data: bytes) -> None:
    """Read the bytes as a file of hnswlib, in an index with right hashes."""
    _native("hnsw", "index.hnsw", data)


def faiss(data: bytes) -> None:
    """Read the bytes as a file of faiss, in an index with right hashes."""
    _native("ivf", "index.faiss", data)


def recipe(data: bytes) -> None:
    """Read the bytes as the recipe of a training."""
    file = _home() / "recipe.toml"
    file.write_bytes(data)
    with suppress(RetrError):
        read_recipe(str(file))


def http(data: bytes) -> None:
    """Send a request: the first line has method and path, the rest is the body or an upload."""
    line, _, body = data.partition(b"\n")
    method, _, path = line.decode("latin-1").partition(" ")
    known = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS")
    given: dict[str, Any] = {"content": body}
    if method == "UPLOAD":
        method, given = "POST", {"files": {"image": ("a.png", body, "image/png")}}
    if method not in known:
        return
    printable = "".join(c for c in path if c.isprintable() and c not in "#\x7f")
    try:
        answer = _client().request(method, "/" + printable.lstrip("/"), **given)
    except (ValueError, UnicodeError):  # no client sends such a URL
        return
    assert answer.status_code < 500, answer.text


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        image,
        parquet,
        arrow,
        tar,
        manifest,
        card,
        index_json,
        hnsw,
        faiss,
        recipe,
        http,
    )
}


def seeds(name: str) -> list[bytes]:
    """Return valid inputs of a target."""
    match name:
        case "image":
            return [_picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")]
        case "parquet":
            return [_parquet()]
        case "arrow":
            return [_arrow(pa.ipc.new_stream), _arrow(pa.ipc.new_file)]
        case "tar":
            return [_tar(tarfile.PAX_FORMAT), _tar(tarfile.GNU_FORMAT)]
        case "manifest":
            return [(_set() / "manifest.json").read_bytes()]
        case "card":
            golden = Path(__file__).parents[1] / "golden" / "v2"
            names = ("encoder/card.json", "calibration-isotonic.json", "calibration-logistic.json")
            return [(golden / name).read_bytes() for name in names]
        case "index_json":
            return [(_index("exact") / INDEX).read_bytes()]
        case "hnsw":
            return [(_index("hnsw") / "index.hnsw").read_bytes()]
        case "faiss":
            return [(_index("ivf") / "index.faiss").read_bytes()]
        case "recipe":
            recipes = Path(__file__).parents[2] / "encoders" / "recipes"
            return [path.read_bytes() for path in sorted(recipes.glob("*.toml"))[:4]]
        case _:
            picture = _picture("PNG")
            return [
                b"GET /api/indices\n",
                b"UPLOAD /api/search?k=2\n" + picture,
                b"POST /api/search?k=2\n" + picture,
                b"GET /api/items?start=2&count=9\n",
                b"POST /api/embed\n" + picture,
                b"GET /api/items/even%2F0.png/image?size=64\n",
                b"GET /api/items/odd%2F1.png/neighbors?k=3&where=label%3Deven\n",
                b"GET /api/map?method=pca&seed=1\n",
                b"GET /metrics\n",
            ]


@cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="retr-fuzz-"))
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    rng = np.random.default_rng(0)
    for number in range(12):
        place = home / "photos" / ("even", "odd")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(place)
    return home


@cache
def _set() -> Path:
    folder = _home() / "set"
    encode_source(open_source(str(_home() / "photos")), Toy(), folder, shard_images=5)
    return folder


@cache
def _index(backend: str) -> Path:
    folder = _home() / backend
    build_index([open_embeddings(_set())], backend, folder)
    return folder


def _native(backend: str, name: str, data: bytes) -> None:
    folder = _index(backend)
    whole = {each: (folder / each).read_bytes() for each in (name, INDEX)}
    try:
        (folder / name).write_bytes(data)
        document = json.loads(whole[INDEX])
        files = {**document["files"], name: sha256_of(folder / name)}
        (folder / INDEX).write_text(json.dumps(sealed({**document, "files": files})))
        with suppress(RetrError):
            index = open_index(folder).index
            hits = index.search(np.ones((2, index.dim), np.float32), 3)
            assert ((hits.rows >= -1) & (hits.rows < len(index))).all()
    finally:
        for each, content in whole.items():
            (folder / each).write_bytes(content)
        IndexFacts.read(folder)


def _sealed(data: bytes) -> bytes:
    """Return the bytes, with the right checksum if they are a JSON object."""
    try:
        document = json.loads(data)
        return json.dumps(sealed(document)).encode() if isinstance(document, dict) else data
    except (ValueError, RecursionError):
        return data


@cache
def _client() -> Any:
    from starlette.testclient import TestClient

    from retrieval.serving.app import make_app
    from retrieval.serving.collection import Collection

    collection = Collection([_index("hnsw")])
    collection.open_encoders()
    client = TestClient(
        make_app(collection), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    )
    return client


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _table() -> pa.Table:
    return pa.table(
        {
            "image": [{"bytes": _picture("PNG"), "path": f"{number}.png"} for number in range(3)],
            "label": ["a", None, "b"],
        }
    )


def _parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(_table(), stream, row_group_size=2)
    return stream.getvalue()


def _arrow(kind: Callable[..., Any]) -> bytes:
    stream = io.BytesIO()
    with kind(stream, _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=2)
    return stream.getvalue()


def _tar(kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for number in range(3):
            name = f"{'long' * 30}/é{number}"
            for ending, content in (("png", _picture("PNG")), ("json", b'{"label": 1}')):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()

"""The backend Milvus on the command line. The tests need Milvus Lite."""

import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import Retr

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs Milvus Lite: see the Makefile")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MILVUS_URI", "MILVUS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_milvus_lite_index_supports_all_commands(retr: Retr, gallery: Gallery) -> None:
    index = retr.cwd / "index"
    built = retr.json("index", gallery.embeddings, "--backend", "milvus", "--out", index)
    assert (built["backend"], built["rows"]) == ("milvus", 60)
    assert built["details"] == {
        "database": "Milvus Lite", "collection": "retr", "recall_at_10": 1.0,
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    search = ("search", gallery.image, "-k", "5", "--where", "label=red,blue", "--index")
    found, expected = (retr.json(*search, each) for each in (index, gallery.index("exact")))
    for mine, true in zip(found[0]["hits"], expected[0]["hits"], strict=True):
        assert mine["distance"] == pytest.approx(true["distance"], abs=1e-5)
        assert {**mine, "distance": 0} == {**true, "distance": 0}
    evaluation = ("eval", "--queries", gallery.embeddings, "--database", gallery.embeddings)
    through = [
        retr.json(*evaluation, "--index", each)["map_at"]["10"]
        for each in (index, gallery.index("exact"))
    ]
    np.testing.assert_allclose(*through, atol=1e-3)
    assert retr.json("verify", index)["ok"]
    assert "Milvus Lite" in retr("info", index).out
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
    refused = retr.refused("index", gallery.embeddings, "--add", "--out", index)
    assert "milvus cannot add rows" in refused


def test_verify_finds_damage_of_milvus(retr: Retr, gallery: Gallery) -> None:
    index = retr.cwd / "index"
    retr("index", gallery.embeddings, "--backend", "milvus", "--out", index)
    graph = next(index.glob("*.idx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "checksum mismatch" in retr("verify", index, code=2).out


def test_missing_milvus_server_is_reported_soon(retr: Retr, gallery: Gallery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = replace(retr, env={"MILVUS_URI": uri, "MILVUS_TOKEN": "me:secret"})
        began = time.monotonic()
        message = asking.refused(
            "index", gallery.embeddings, "--backend", "milvus", "--out", retr.cwd / "index"
        )
        assert time.monotonic() - began < 60  # 5 s of waiting, and time for a busy machine
    assert re.search(rf"Milvus at {uri} does not answer; start it", message)
    assert "secret" not in message


def test_wrong_milvus_options_are_refused(retr: Retr, gallery: Gallery) -> None:
    build = ("index", gallery.embeddings, "--backend", "milvus", "--set")
    assert "there are: AUTOINDEX" in retr.refused(*build, "index_type=hnsw")
    assert "invalid address" in retr.refused(*build, "uri=milvus.db")
    manhattan = retr.refused(*build[:-1], "--metric", "manhattan")
    assert "Milvus has no manhattan distance; use the backend exact or ivf" in manhattan
    shutil.rmtree(Path(retr.cwd) / "index", ignore_errors=True)

"""Commands on a store, and on indices in parts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import Retr
from tests.stores import KEYS, s3_server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Yield a server of S3 with the bucket `bucket`."""
    import s3fs

    with s3_server() as url:
        s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=url).makedirs(
            "bucket", exist_ok=True
        )
        yield url


@pytest.fixture
def stored(retr: Retr, address: str) -> Retr:
    return replace(retr, env={**KEYS, "AWS_ENDPOINT_URL": address})


def test_encode_index_and_search_work_in_a_store(stored: Retr, gallery: Gallery) -> None:
    made = stored.json(
        "encode", gallery.images, "--encoder", "toy", "--out", "s3://bucket/embeddings"
    )
    assert (made["rows"], made["out"]) == (60, "s3://bucket/embeddings")
    index = stored.json("index", "s3://bucket/embeddings", "--out", "s3://bucket/index")
    assert (index["rows"], index["backend"]) == (60, "hnsw")
    assert index["size_bytes"] > 1000
    (found,) = stored.json("search", gallery.image, "--index", "s3://bucket/index", "-k", 3)
    assert found["hits"][0]["id"] == "green/7.png"
    assert stored.json("verify", "s3://bucket/embeddings")["ok"]
    assert stored.json("verify", "s3://bucket/index")["ok"]
    assert stored.json("info", "s3://bucket/index")["rows"] == 60
    folders = ["--queries", "s3://bucket/embeddings", "--database", "s3://bucket/embeddings"]
    here = ["--queries", gallery.embeddings, "--database", gallery.embeddings]
    measured = stored.json("eval", *folders, "--index", "s3://bucket/index")["map_at"]
    assert measured == stored.json("eval", *here)["map_at"]


def test_missing_urls_are_refused(stored: Retr, gallery: Gallery) -> None:
    for arguments, words in (
        (["encode", "s3://other/photos", "--encoder", "toy"], "does not exist; create it"),
        (
            ["encode", gallery.images, "--encoder", "toy", "--out", "s3://other/e"],
            "does not exist; create it",
        ),
        (["index", "s3://bucket/nothing"], "is not an embeddings folder"),
        (["search", gallery.image, "--index", "s3://bucket/nothing"], "is not an index"),
        (["encode", "s3://bucket/nothing", "--encoder", "toy"], "nothing found at"),
        (["verify", "s3://bucket/nothing"], "not found"),
        (["encode", "nosuch://a/b", "--encoder", "toy"], "Protocol not known"),
    ):
        assert words in stored.refused(*arguments)


def test_an_index_in_parts(retr: Retr, gallery: Gallery, tmp_path: Path) -> None:
    # A shard has 10,000 images, so several sets are needed for several parts.
    retr("encode", gallery.images / "red", "--encoder", "toy", "--out", "red")
    made = retr.json("index", gallery.embeddings, "--parts", 4, "--out", "one-part")
    assert retr.json("index", "--merge", "--out", "one-part")["rows"] == made["rows"]
    assert retr("info", "one-part").out.count("parts") == 0
    assert "not in parts" in retr("index", "--merge", "--out", "one-part").out
    made = retr.json("index", gallery.embeddings, "--parts", 4, "--out", "one-part")
    assert made["details"]["parts"] == 1
    again = retr("index", "--add", gallery.embeddings, "--out", "one-part")
    assert "the rows are in the index already" in again.out
    assert "duplicate id" not in again.err
    message = retr.refused("index", gallery.embeddings, "--parts", 0, "--out", "none")
    assert "--parts" in message
    for arguments, words in (
        (["--backend", "auto", "--parts", "2"], "auto builds one index"),
        (["--engine", "ray"], "--parts"),
        (["--engine", "rey", "--parts", "2"], "did you mean 'ray'"),
        (["--address", "127.0.0.1:1", "--parts", "2"], "--engine ray"),
        (["--add", "--parts", "2"], "keep the index's backend"),
        (["--merge", "--add"], "--merge takes no embeddings"),
        (["--merge", "--backend", "exact"], "keep the index's backend"),
    ):
        assert words in retr.refused("index", gallery.embeddings, *arguments, "--out", "none")

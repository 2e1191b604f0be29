"""The service: queries of words, images and rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from encoders.toy import Toy
from retrieval import build_index, open_embeddings
from retrieval.contracts import Encoder, Metric, Prompts
from retrieval.embedding import embed
from retrieval.embedding.encode import encode_source
from retrieval.embedding.onnx_cache import ExportFacts, TextFacts, export_folder
from retrieval.images import open_source
from retrieval.serving.app import make_app
from retrieval.serving.asked import MAX_PARTS, MAX_TEXT_CHARACTERS
from retrieval.serving.collection import Collection
from retrieval.storage.sets.manifest import EncoderFacts
from tests.unit.embedding.test_embed import ImagesOnly
from tests.uploads import HERE, asked, png, searched

IMAGES_ONLY = "encoder toy cannot embed text; search by image, or encode the images with --encoder"


class Brief(Toy):
    """The toy encoder, which reads two words of a text."""

    max_tokens = 2

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


@pytest.fixture
def wordy(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """The collection, whose encoder reads two words of a text."""
    monkeypatch.setattr(embed, "open_encoder", lambda name, device: Brief())
    return collection


@pytest.fixture
def words(wordy: Collection) -> Iterator[TestClient]:
    with TestClient(make_app(wordy), base_url=HERE, raise_server_exceptions=False) as made:
        yield made


def labels(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["label"] for hit in answer.json()["hits"]]


def vector_of(collection: Collection, id_: str) -> Any:
    vectors = collection[None].vectors()
    assert vectors is not None
    return vectors[collection[None].row_of(id_)]


def test_words_find_images(words: TestClient) -> None:
    answer = asked(words, ("text", "green"), ("k", 4), ("where", "label in (green, red)"))
    assert labels(answer) == ["green"] * 4
    told = answer.json()
    assert set(told) == {"hits", "label", "milliseconds"} and told["label"] is None
    assert told["milliseconds"]["encode"] > 0
    assert 'retr_encode_seconds_count{index="exact"} 1.0' in words.get("/metrics").text


def test_a_query_is_the_weighted_sum_of_its_parts(words: TestClient, wordy: Collection) -> None:
    answer = asked(
        words,
        *[("image", png((255, 0, 0))), ("image", png((0, 0, 255)))],
        *[("text", "green"), ("text", "blue"), ("not", "red")],
        *[("like", "green/3.png"), ("unlike", "blue/4.png")],
        *[("weight_images", 2), ("weight_text", 0.5), ("weight_not", 0.25), ("k", 28)],
    )
    own, other = vector_of(wordy, "green/3.png"), vector_of(wordy, "blue/4.png")
    images = np.mean([[1, 0, 0], [0, 0, 1], own], axis=0)
    query = (
        2 * images + 0.5 * np.array([0, 64 / 255, 0.5]) - 0.25 * np.array([1, 0, 0]) - 0.25 * other
    )
    hits = answer.json()["hits"]
    assert len(hits) == 28
    assert {"green/3.png", "blue/4.png"}.isdisjoint({hit["id"] for hit in hits})
    for hit in hits[:3]:
        distance = np.linalg.norm(query - vector_of(wordy, hit["id"]))
        assert hit["distance"] == pytest.approx(distance, abs=1e-5)


def test_words_turn_a_search_by_image(words: TestClient) -> None:
    alone = asked(words, ("image", png((255, 0, 0))), ("index", "ivf"), ("k", 3))
    assert labels(alone) == ["red"] * 3
    both = [("image", png((255, 0, 0))), ("text", "blue"), ("index", "ivf"), ("k", 3)]
    assert labels(asked(words, *both, ("weight_text", 3))) == ["blue"] * 3
    assert labels(asked(words, *both, ("weight_text", 0.2))) == ["red"] * 3
    assert labels(asked(words, ("text", "red"), ("not", "red"), ("weight_not", 0))) == ["red"] * 10


def test_like_one_row_is_its_neighbors(words: TestClient) -> None:
    like = asked(words, ("like", "red/2.png"), ("k", 29)).json()
    neighbors = words.get("/api/items/red/2.png/neighbors?k=29").json()
    assert like["hits"] == neighbors["hits"] and len(like["hits"]) == 29
    assert neighbors["label"] == "red" and like["label"] is None


def test_rows_without_stored_vectors_are_encoded(wordy: Collection) -> None:
    blind = Collection([served.searcher.opened.folder for served in wordy.served.values()])
    parts = [("like", "red/2.png"), ("unlike", "blue/1.png"), ("text", "red"), ("k", 20)]
    with TestClient(make_app(blind), base_url=HERE) as client:
        without = asked(client, *parts).json()
    with TestClient(make_app(wordy), base_url=HERE) as client:
        stored = asked(client, *parts).json()
    assert [hit["id"] for hit in without["hits"]] == [hit["id"] for hit in stored["hits"]]


def test_a_text_that_is_too_long_gets_a_note(words: TestClient) -> None:
    told = asked(words, ("text", "green green green"), ("k", 1)).json()
    [note] = told["notes"]
    assert "'green green green' has 3 tokens" in note and "reads 2" in note
    told = asked(words, ("text", "a b c"), address="/api/embed").json()
    assert len(told["notes"]) == 1


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ([], 400, "the query is empty; send image, text, not, like or unlike"),
        ([("k", 3)], 400, "the query is empty"),
        ([("text", "")], 400, "a text is empty; give words to search for"),
        ([("text", "red"), ("not", " \n")], 400, "a text is empty"),
        ([("text", "x" * (MAX_TEXT_CHARACTERS + 1))], 400, "a text has 10,001 characters"),
        ([("text", "red")] * (MAX_PARTS + 1), 400, "the query has 33 parts; send at most 32"),
        ([("text", "red"), ("weight_text", "nan")], 400, "weight_text: "),
        ([("text", "red"), ("weight_not", "inf")], 400, "weight_not: "),
        ([("text", "red"), ("weight_images", "-inf")], 400, "weight_images: "),
        ([("text", "red"), ("weight_text", "1e300")], 400, "weight_text: "),
        ([("text", "red"), ("weight_text", "much")], 400, "weight_text: "),
        ([("text", "red"), ("not", "red"), ("weight_not", 1)], 400, "cancel each other out"),
        ([("like", "none.png")], 404, "no row of the index has the id 'none.png'"),
        ([("unlike", "")], 404, "no row of the index has the id ''"),
        ([("text", "red"), ("image", b"no image")], 400, "cannot read image that was sent"),
        ([("text", "red"), ("where", "label = dog")], 404, "unknown label"),
        ([("text", "red"), ("index", "none")], 404, "unknown index 'none'"),
        ([("text", "red"), ("k", 31)], 400, "k is 31"),
    ],
)  # fmt: skip
def test_bad_queries(
    words: TestClient, fields: list[tuple[str, Any]], status: int, error: str
) -> None:
    answer = asked(words, *fields) if fields else asked(words, ("other", "x"))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert error in answer.json()["error"]


def test_an_encoder_without_words_refuses_them(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "open_encoder", lambda name, device: ImagesOnly())
    assert {each["words"] for each in client.get("/api/indices").json()["indices"]} == {None}
    answer = asked(client, ("image", png()), ("text", "red"))
    assert (answer.status_code, IMAGES_ONLY in answer.json()["error"]) == (400, True)
    assert {each["words"] for each in client.get("/api/indices").json()["indices"]} == {False}
    answer = asked(client, ("text", "red"), address="/api/embed")
    assert (answer.status_code, IMAGES_ONLY in answer.json()["error"]) == (400, True)
    assert searched(client, png()).status_code == 200


def test_the_indices_tell_whether_they_take_words(words: TestClient, wordy: Collection) -> None:
    assert words.get("/api/indices").json()["indices"][1]["words"] is None
    wordy.open_encoders()
    assert words.get("/api/indices").json()["indices"][1]["words"] is True


@pytest.mark.parametrize("has_words", [False, True])
def test_an_export_tells_whether_it_takes_words(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, has_words: bool
) -> None:
    """The encoder is never opened by name, which may import torch."""
    opened = []

    def from_cache(fingerprint: str, device: str, text: bool = False) -> Encoder:
        opened.append("text" if text else "images")
        return Brief() if text else ImagesOnly()

    def by_name(name: str, device: str) -> Encoder:
        raise AssertionError("opened by name")

    toy = ImagesOnly()
    text = TextFacts("0", "0", {}, Prompts()) if has_words else None
    folder = export_folder(toy.fingerprint)
    folder.mkdir(parents=True)
    ExportFacts(EncoderFacts.of(toy), 3, Metric.EUCLIDEAN, toy.framing, "0", text).write(folder)
    monkeypatch.setattr(embed, "open_export", from_cache)
    monkeypatch.setattr(embed, "open_encoder", by_name)
    collection.open_encoders()
    assert opened == (["images", "text"] if has_words else ["images"])
    with TestClient(make_app(collection), base_url=HERE) as client:
        assert client.get("/api/indices").json()["indices"][0]["words"] is has_words
        answer = asked(client, ("text", "red"), ("k", 1))
        image = searched(client, png())
    assert image.status_code == 200
    if has_words:
        assert labels(answer) == ["red"]
    else:
        assert (answer.status_code, IMAGES_ONLY in answer.json()["error"]) == (400, True)


def test_an_encoder_that_fails_to_open_is_no_fault_of_the_words(
    client: TestClient, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brief, "fingerprint", "f" * 64)
    monkeypatch.setattr(embed, "open_encoder", lambda name, device: Brief())
    collection.open_encoders()
    answer = asked(client, ("text", "red"))
    assert (answer.status_code, "was built with encoder toy" in answer.json()["error"]) == (
        500, True,
    )  # fmt: skip
    assert client.get("/api/indices").json()["indices"][0]["words"] is None


def test_embeddings_of_words(words: TestClient) -> None:
    told = asked(words, ("text", "blue"), address="/api/embed").json()
    assert told["embedding"] == [0, 0, 1] and told["encoder"]["name"] == "toy"
    for fields in ([("text", "a"), ("image", png())], [("index", "ivf")], [("text", "")]):
        answer = asked(words, *fields, address="/api/embed")
        assert (answer.status_code, "send one of them" in answer.json()["error"]) == (400, True)


def test_columns_and_items(photos: Path, tmp_path: Path) -> None:
    (photos / "metadata.csv").write_text("file_name,stars,good\nred/1.png,5,true\n")
    encode_source(open_source(str(photos)), Toy(), tmp_path / "starred")
    build_index([open_embeddings(tmp_path / "starred")], "exact", tmp_path / "stars")
    with TestClient(make_app(Collection([tmp_path / "stars"])), base_url=HERE) as client:
        [index] = client.get("/api/indices").json()["indices"]
        item = client.get("/api/items/red%2F1.png").json()
        other = client.get("/api/items/red/2.png").json()
        unknown = client.get("/api/items/red")
    types = {each["name"]: each["type"] for each in index["columns"]}
    assert {"taken": "time", "width": "number", "camera": "text"}.items() <= types.items()
    assert (types["stars"], types["good"]) == ("number", "boolean")
    assert set(item) == {"id", "label", "path", "columns"}
    assert (item["id"], item["label"]) == ("red/1.png", "red")
    assert item["path"] == str(photos / "red" / "1.png")
    assert set(item["columns"]) == set(types)
    assert (item["columns"]["width"], item["columns"]["stars"], item["columns"]["good"]) == (
        16, 5, True,
    )  # fmt: skip
    assert item["columns"]["modified"].startswith("20") and item["columns"]["taken"] is None
    assert other["columns"]["stars"] is None
    assert (unknown.status_code, "has the id 'red'" in unknown.json()["error"]) == (404, True)


def test_the_encoder_of_a_new_version_opens_at_once(
    collection: Collection, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(ImagesOnly):
        fingerprint = "e" * 64

    collection.open_encoders()
    assert collection["exact"].described["words"] is True
    encode_source(open_source(str(photos)), Other(), tmp_path / "others")
    build_index([open_embeddings(tmp_path / "others")], "exact", tmp_path / "exact")
    monkeypatch.setattr(embed, "open_encoder", lambda name, device: Other())
    assert collection.refresh() == ["exact"]
    assert collection["exact"].described["words"] is False
    assert collection["ivf"].described["words"] is True

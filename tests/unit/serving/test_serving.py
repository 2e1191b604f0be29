"""The service: the answer of each address."""

import io
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.index.update import add_rows, delete_rows
from retrieval.serving.app import make_app
from retrieval.serving.collection import Collection
from retrieval.serving.effort import Effort
from tests.uploads import HERE, png, searched


def test_image_search_returns_similar_images(client: TestClient) -> None:
    answer = searched(client, png(), k=5)
    assert answer.status_code == 200
    told = answer.json()
    assert [hit["rank"] for hit in told["hits"]] == [1, 2, 3, 4, 5]
    assert {hit["label"] for hit in told["hits"]} == {"red"}
    assert set(told["hits"][0]) == {"rank", "id", "label", "distance", "path"}
    assert told["label"] is None
    assert told["milliseconds"]["search"] > 0
    distances = [hit["distance"] for hit in told["hits"]]
    assert distances == sorted(distances)


def test_without_k_there_are_ten_hits_or_as_many_as_there_are(
    client: TestClient, photos: Path, tmp_path: Path
) -> None:
    assert len(searched(client, png()).json()["hits"]) == 10
    for path in photos.glob("*/[2-9].png"):
        path.unlink()
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "six")
    build_index([open_embeddings(tmp_path / "six")], "exact", tmp_path / "few")
    with TestClient(make_app(Collection([tmp_path / "few"])), base_url=HERE) as of_six:
        assert len(searched(of_six, png()).json()["hits"]) == 6
        assert len(searched(of_six, png(), where="label=red").json()["hits"]) == 2
        address = "/api/items/red/0.png/neighbors"
        assert len(of_six.get(address).json()["hits"]) == 5
        assert searched(of_six, png(), k=7).json()["error"] == "k is 7; give 1 to 6"
        assert of_six.get(f"{address}?k=7").json()["error"] == "k is 7; give 1 to 6"


def test_filters_and_other_indices(client: TestClient) -> None:
    told = searched(client, png(), k=3, where="label=blue", index="ivf", effort="2").json()
    assert {hit["label"] for hit in told["hits"]} == {"blue"}


def test_neighbors_of_an_item_exclude_it(client: TestClient, collection: Collection) -> None:
    told = client.get("/api/items/green/7.png/neighbors", params={"k": 29}).json()
    assert told["label"] == "green"
    assert [hit["rank"] for hit in told["hits"]] == [*range(1, 30)]
    assert "green/7.png" not in {hit["id"] for hit in told["hits"]}
    served = collection[None]
    vectors = served.vectors()
    assert vectors is not None
    own = vectors[served.row_of("green/7.png")]
    first = vectors[served.row_of(told["hits"][0]["id"])]
    assert told["hits"][0]["distance"] == pytest.approx(np.linalg.norm(own - first), abs=1e-5)


def test_without_embeddings_an_item_is_encoded_again(collection: Collection) -> None:
    folders = [served.searcher.opened.folder for served in collection.served.values()]
    blind = Collection(folders)
    assert blind[None].vectors() is None
    with_vectors, without = (
        [
            (hit.id, round(hit.distance, 4))
            for hit in each[None].neighbors("red/1.png", 9, None, None).hits
        ]
        for each in (collection, blind)
    )
    assert with_vectors == without
    with TestClient(make_app(blind), base_url=HERE) as client:
        told = client.get("/api/map")
    assert told.status_code == 400
    assert "name their folder with --embeddings" in told.json()["error"]


def test_vectors_follow_rows_that_were_deleted(collection: Collection, tmp_path: Path) -> None:
    before = collection[None].vectors()
    delete_rows(tmp_path / "exact", "label=blue")
    after = Collection([tmp_path / "exact"], [tmp_path / "embeddings"])[None]
    vectors = after.vectors()
    assert before is not None and vectors is not None and len(vectors) == 20
    row = after.row_of("red/3.png")
    np.testing.assert_array_equal(vectors[row], before[collection[None].row_of("red/3.png")])


def test_pictures(client: TestClient) -> None:
    told = client.get("/api/items/red/0.png/image", params={"size": 16})
    assert told.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(told.content)).size == (16, 12)


def test_large_pictures_become_small(tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (900, 600), (9, 9, 200)).save(photos / "blue" / "large.tif")
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "exact")
    with TestClient(make_app(Collection([tmp_path / "exact"])), base_url=HERE) as client:
        told = client.get("/api/items/blue/large.tif/image", params={"size": 300})
        assert told.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(told.content)).size == (300, 200)
        (photos / "blue" / "large.tif").unlink()
        gone = client.get("/api/items/blue/large.tif/image", params={"size": 200})
    assert gone.status_code == 404
    assert "no such file" in gone.json()["error"]


def test_items_are_drawn_by_seed(client: TestClient) -> None:
    def drawn(**asked: Any) -> list[str]:
        return [item["id"] for item in client.get("/api/items", params=asked).json()["items"]]

    assert drawn(limit=5, seed=1) == drawn(limit=5, seed=1) != drawn(limit=5, seed=2)
    assert len(set(drawn(limit=200))) == 30
    assert {id_.split("/")[0] for id_ in drawn(where="label=red", limit=200)} == {"red"}


def test_embeddings(client: TestClient) -> None:
    told = client.post("/api/embed", files={"image": ("a.png", png((255, 0, 51)), "image/png")})
    assert told.json()["embedding"] == pytest.approx([1, 0, 0.2])
    assert told.json()["encoder"]["fingerprint"] == open_encoder("toy").fingerprint


def test_indices_and_what_they_trade(client: TestClient) -> None:
    exact, ivf = client.get("/api/indices").json()["indices"]
    assert exact["effort"] is None and exact["rows"] == 30
    assert exact["labels"] == ["blue", "green", "red"]
    assert (ivf["metric"], ivf["effort"]["option"], ivf["effort"]["current"]) == (
        "cosine", "n_probe", 4,
    )  # fmt: skip


def test_effort_holds_for_its_search_alone(collection: Collection) -> None:
    served = collection["ivf"]
    index: Any = served.searcher.opened.index
    served.neighbors("red/0.png", 3, None, "1")
    assert index.n_probe == 1
    served.neighbors("red/0.png", 3, None, None)
    assert index.n_probe == 4


def test_custom_option_value_is_listed_among_efforts(
    tmp_path: Path, collection: Collection
) -> None:
    sets = [open_embeddings(tmp_path / "embeddings")]
    facts = build_index(sets, "hnsw", tmp_path / "hnsw", options={"ef": 65})
    efforts = Effort.of(facts)
    assert efforts is not None and efforts.current == 65
    assert list(efforts.values) == sorted({*efforts.values}) and 65 in efforts.values


def test_the_map(client: TestClient) -> None:
    told = client.get("/api/map").json()
    assert len(told["x"]) == len(told["y"]) == len(told["ids"]) == len(told["label_of"]) == 30
    assert min(told["x"]) == min(told["y"]) == 0 and max(told["x"]) == max(told["y"]) == 1
    named = {
        id_: told["labels"][label] for id_, label in zip(told["ids"], told["label_of"], strict=True)
    }
    assert named["blue/4.png"] == "blue"
    places = {id_: (x, y) for id_, x, y in zip(told["ids"], told["x"], told["y"], strict=True)}
    mean = {
        label: np.mean([at for id_, at in places.items() if id_.startswith(label)], axis=0)
        for label in told["labels"]
    }
    assert np.linalg.norm(mean["red"] - mean["blue"]) > 0.3


def test_health_metrics_and_description(client: TestClient, collection: Collection) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "ready": False}
    assert collection.open_encoders()[0].fingerprint == open_encoder("toy").fingerprint
    assert client.get("/healthz").json()["ready"]
    searched(client, png())
    text = client.get("/metrics").text
    assert 'retr_requests_total{path="/api/search",status="200"} 1.0' in text
    assert 'retr_search_seconds_count{index="exact"} 1.0' in text
    assert 'retr_rows{index="ivf"} 30.0' in text
    described = client.get("/openapi.json").json()
    assert {"/api/search", "/api/items/{id}/neighbors", "/healthz"} <= set(described["paths"])


def test_page_requests_no_other_host(client: TestClient) -> None:
    for address in ("/", "/page.css", "/page.js", "/docs"):
        told = client.get(address)
        assert told.status_code == 200
        assert "http://" not in told.text and "https://" not in told.text
        assert "default-src 'self'" in told.headers["content-security-policy"]


def test_a_row_that_was_added_again_has_its_new_vector(
    collection: Collection, tmp_path: Path, photos: Path
) -> None:
    delete_rows(tmp_path / "exact", "id=red/3.png")
    for image in photos.glob("*/*.png"):
        if image.name != "3.png" or image.parent.name != "red":
            image.unlink()
    Image.new("RGB", (16, 12), (1, 2, 250)).save(photos / "red" / "3.png")
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "more")
    add_rows(tmp_path / "exact", [open_embeddings(tmp_path / "more")])
    served = Collection([tmp_path / "exact"], [tmp_path / "embeddings", tmp_path / "more"])[None]
    vectors = served.vectors()
    assert vectors is not None
    assert vectors[served.row_of("red/3.png")][2] > 0.9, "blue now"


def test_labels_with_commas(tmp_path: Path, photos: Path) -> None:
    (photos / "red").rename(photos / "red, dark")
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "exact")
    with TestClient(make_app(Collection([tmp_path / "exact"])), base_url=HERE) as client:
        told = searched(client, png(), k=3, where="label=red, dark").json()
        both = searched(client, png(), k=20, where="label=green,blue").json()
    assert {hit["label"] for hit in told["hits"]} == {"red, dark"}
    assert {hit["label"] for hit in both["hits"]} == {"green", "blue"}


def test_indices_of_one_name_get_numbers(collection: Collection, tmp_path: Path) -> None:
    both = Collection([tmp_path / "exact", tmp_path / "exact"])
    assert [*both.served] == ["exact", "exact-2"]
    with pytest.raises(BadInput, match="there is no index to serve"):
        Collection([])


def test_an_image_whose_name_is_not_utf8_is_shown(tmp_path: Path, photos: Path) -> None:
    folder = photos.rename(photos.with_name(os.fsdecode(b"caf\xe9")))
    (folder / "red" / "1.png").rename(folder / "red" / os.fsdecode(b"\xff.png"))
    encode_source(open_source(str(folder)), open_encoder("toy"), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "exact")
    with TestClient(make_app(Collection([tmp_path / "exact"])), base_url=HERE) as client:
        asked = {"where": r"id=red/\udcff.png"}
        (item,) = client.get("/api/items", params=asked).json()["items"]
        (hit,) = searched(client, png(), k=1, **asked).json()["hits"]
        assert os.fsencode(item["path"]) == os.fsencode(hit["path"])
        assert os.fsencode(item["path"]).endswith(b"caf\xe9/red/\xff.png")
        assert Path(item["path"]).is_file()
        answer = client.get(f"/api/items/{quote(item['id'], safe='')}/image")
        assert answer.status_code == 200


def test_a_new_version_of_an_index_is_served_without_a_restart(
    collection: Collection, client: TestClient, photos: Path, tmp_path: Path
) -> None:
    before = client.get("/api/indices").json()["indices"][0]
    old = collection["exact"]
    assert collection.refresh() == []
    shutil.copy(photos / "red" / "1.png", photos / "red" / "new.png")
    encode_source(open_source(str(photos)), open_encoder("toy"), tmp_path / "embeddings")
    build_index([open_embeddings(tmp_path / "embeddings")], "exact", tmp_path / "exact")
    assert client.get("/api/indices").json()["indices"][0] == before
    assert collection.refresh() == ["exact"]
    after = client.get("/api/indices").json()["indices"][0]
    assert (before["rows"], after["rows"]) == (30, 31)
    assert after["version"] != before["version"]
    assert len(old.rows) == 30  # a search that is running keeps it


def test_a_new_version_that_cannot_be_opened_leaves_the_old_one(
    collection: Collection, client: TestClient, tmp_path: Path
) -> None:
    facts = (tmp_path / "exact" / "index.json").read_bytes()
    (tmp_path / "exact" / "index.json").write_bytes(facts[:-20])
    assert collection.refresh() == []
    assert client.get("/api/indices").json()["indices"][0]["rows"] == 30

"""The backend pgvector on the command line."""

import json
import socket
from dataclasses import replace

import numpy as np
import pytest

from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr
from tests.postgres import PASSWORD, TestServer

pytestmark = pytest.mark.usefixtures("database")


def test_pgvector_index_supports_all_commands(retr: Retr, gallery: Gallery, database: str) -> None:
    index = retr.cwd / "index"
    built = retr.json(
        "index", gallery.embeddings, "--backend", "pgvector", "--set", "table=t", "--out", index
    )
    assert (built["backend"], built["rows"]) == ("pgvector", 60)
    assert built["details"]["table"] == "public.t"
    assert database in built["details"]["database"]
    for where in ("label=red,blue", "label != green and width > 3"):
        search = ("search", gallery.image, "-k", "5", "--where", where, "--index")
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
    assert "public.t" in retr("info", index).out


def test_an_index_of_pgvector_follows_its_folder(
    retr: Retr, postgres: TestServer, database: str
) -> None:
    photos = retr.cwd / "photos"
    for number in range(12):
        save(photos / "red" / f"{number}.png", seed=number)
    encode = ("encode", photos, "--encoder", "toy", "--out", retr.cwd / "e")
    index = ("index", retr.cwd / "e", "--backend", "pgvector", "--set", "table=t", "--out", "i")
    retr(*encode)
    retr(*index)
    (photos / "red" / "3.png").unlink()
    (photos / "blue").mkdir()
    (photos / "red" / "5.png").rename(photos / "blue" / "5.png")
    save(photos / "new.png", seed=99)
    retr(*encode)
    retr(*index)
    ids = {*(f"red/{i}.png" for i in range(12) if i not in (3, 5)), "blue/5.png", "new.png"}
    assert {each for (each,) in postgres.run("SELECT id FROM t", database)} == ids
    columns = postgres.run("SELECT width, height FROM t WHERE id = 'new.png'", database)
    assert columns and None not in columns[0]
    (found,) = retr.json("search", photos / "new.png", "-k", "1", "--index", "i")
    assert found["hits"][0]["id"] == "new.png"


def test_bench_puts_pgvector_beside_the_others(
    retr: Retr, gallery: Gallery, postgres: TestServer, database: str
) -> None:
    retr(
        "bench", "--backend", "exact", "--backend", "pgvector", "--database", gallery.embeddings,
        "--queries", gallery.embeddings, "--out", retr.cwd / "report",
    )  # fmt: skip
    documents = [json.loads(file.read_text()) for file in (retr.cwd / "report").glob("*.json")]
    assert "pgvector" in json.dumps(documents)
    left = "SELECT count(*) FROM pg_class WHERE relname ~ '^retr_tmp_' AND relkind = 'r'"
    assert postgres.run(left, database) == [(0,)]


def test_a_missing_database_is_reported(retr: Retr, gallery: Gallery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/photos"
    build = ("index", gallery.embeddings, "--backend", "pgvector", "--out", retr.cwd / "index")
    message = replace(retr, env={"DATABASE_URL": url}).refused(*build)
    assert f"PostgreSQL at 127.0.0.1:{port}/photos does not answer" in message
    assert PASSWORD not in message
    assert "requires a database" in replace(retr, env={"DATABASE_URL": ""}).refused(*build)
    assert not (retr.cwd / "index").exists()

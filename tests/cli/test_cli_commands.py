"""Commands in a workspace, one after the other, and their output."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval import open_embeddings
from tests.cli.gallery import Gallery
from tests.cli.oracle import check_nearest, distances
from tests.cli.pictures import mean_colour, save, save_bad
from tests.cli.running import Retr, snapshot

DIGITS_TRAIN, DIGITS_TEST = 1437, 360
QUIET_COMMANDS = ["encode", "index", "search", "eval", "info", "verify"]


@dataclass(frozen=True, slots=True)
class Session:
    """A folder with encoded digits, the output of `retr encode`, and the command."""

    retr: Retr
    train: Any
    test: Any


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Run `retr encode digits` for both splits, with .retr in the current folder."""
    folder = tmp_path_factory.mktemp("typed")
    retr = Retr(folder, {"RETR_WORKSPACE": ""})
    train = retr.json("encode", "digits", "--encoder", "toy")
    test = retr.json("encode", "digits", "--split", "test", "--encoder", "toy")
    save(folder / "img.png", seed=5)
    return Session(retr, train, test)


def check_encoded(document: Any, rows: int) -> None:
    assert document.keys() == {
        "out", "rows", "dim", "shards", "skipped", "encoded", "kept", "removed", "renamed",
        "encoder", "made_by", "seconds", "images_per_second", "passed_over", "skipped_folders",
    }  # fmt: skip
    assert document["rows"] == rows
    assert (document["dim"], document["shards"], document["skipped"]) == (3, 1, 0)
    assert document["encoder"].keys() == {"name", "fingerprint"}
    assert document["encoder"]["name"] == "toy"
    assert document["images_per_second"] == pytest.approx(rows / document["seconds"])


def test_encode_writes_into_the_workspace_and_prints_the_folder(session: Session) -> None:
    for document, rows in ((session.train, DIGITS_TRAIN), (session.test, DIGITS_TEST)):
        check_encoded(document, rows)
        out = session.retr.cwd / document["out"]
        assert out.parent == session.retr.cwd / ".retr" / "embeddings"
        assert len(open_embeddings(out)) == rows
    assert session.train["out"] != session.test["out"]


def test_second_encode_has_nothing_to_do(session: Session) -> None:
    before = snapshot(session.retr.cwd)
    again = session.retr.json("encode", "digits", "--encoder", "toy", "--split", "train")
    assert (again["out"], again["rows"]) == (session.train["out"], DIGITS_TRAIN)
    assert again["images_per_second"] == 0
    after = snapshot(session.retr.cwd)
    after[".retr/latest.json"] = before[".retr/latest.json"]
    assert after == before


@pytest.mark.parametrize("backend", ["hnsw", "exact", "ivf"])
def test_index_and_search_use_the_last_embeddings(session: Session, backend: str) -> None:
    index = session.retr.json("index", "--backend", backend)
    assert index.keys() == {
        "out", "change", "backend", "metric", "rows", "dim", "options", "details", "seconds",
        "size_bytes",
    }  # fmt: skip
    assert (index["backend"], index["metric"]) == (backend, "euclidean")
    assert (index["rows"], index["dim"]) == (DIGITS_TRAIN, 3)
    folder = session.retr.cwd / index["out"]
    files = [path for path in folder.iterdir() if path.name != "index.json"]
    assert index["size_bytes"] == sum(path.stat().st_size for path in files)

    (answer,) = session.retr.json("search", "img.png", "-k", "10")
    assert answer.keys() == {"query", "hits"}
    assert answer["query"] == "img.png"
    rows, vectors = open_embeddings(session.retr.cwd / session.train["out"]).read()
    far = distances(mean_colour(pixels_of(session, "img.png")), vectors, "euclidean")
    found = [rows["id"].to_pylist().index(hit["id"]) for hit in answer["hits"]]
    assert len(set(found)) == 10
    # Digits are gray and often at equal distances: compare the distances, not the rows.
    np.testing.assert_allclose([hit["distance"] for hit in answer["hits"]], far[found], atol=1e-3)
    np.testing.assert_allclose(far[found], np.sort(far)[:10], rtol=1e-3)


def test_auto_prints_its_trials_and_choice(session: Session) -> None:
    index = session.retr.json("index", "--backend", "auto", "--target-recall", "0.9")
    assert (index["backend"], index["rows"]) == ("exact", DIGITS_TRAIN)
    tuning = index["tuning"]
    assert tuning["target"] == {
        "recall": 0.9, "k": 10, "max_memory": None, "max_latency": None, "batches": False,
    }  # fmt: skip
    assert "few" in tuning["reason"]
    assert tuning.keys() == {
        "target", "seed", "queries", "held_out", "trials", "failed", "checked", "reason", "budget",
        "seconds",
    }  # fmt: skip
    assert tuning["checked"][0].keys() == {
        "backend", "options", "setting", "rows", "recall", "seconds", "latency", "size_bytes",
        "build_seconds", "expected_seconds", "expected_bytes", "expected_build", "verdict",
    }  # fmt: skip


def pixels_of(session: Session, name: str) -> Any:
    from PIL import Image

    with Image.open(session.retr.cwd / name) as image:
        return np.asarray(image)


def test_eval_uses_the_last_test_split_as_queries(session: Session) -> None:
    document = session.retr.json("eval", "-k", "1,5,10")
    assert document.keys() == {
        "queries", "database", "encoder", "metric", "protocol", "map", "map_at", "precision_at",
        "recall_at", "ndcg_at", "r_precision", "mrr", "knn_accuracy", "intervals", "per_class",
        "definitions", "left_out", "counts",
    }  # fmt: skip
    assert document["queries"] == str(session.retr.cwd / session.test["out"])
    assert document["database"] == str(session.retr.cwd / session.train["out"])
    assert document["metric"] == "euclidean"
    assert document["counts"] == {"queries": DIGITS_TEST, "database": DIGITS_TRAIN}
    assert document["per_class"].keys() == set("0123456789")
    assert document["definitions"].keys() == {
        "map", "map_at", "precision_at", "recall_at", "ndcg_at", "r_precision", "mrr",
        "knn_accuracy", "intervals",
    }  # fmt: skip
    assert document["intervals"]["map"][0] < document["map"] < document["intervals"]["map"][1]

    queries, asked = open_embeddings(session.retr.cwd / session.test["out"]).read()
    database, searched = open_embeddings(session.retr.cwd / session.train["out"]).read()
    labels = np.array(database["label"].to_pylist())
    first, precision, average = [], [], []
    for vector, label in zip(asked, queries["label"].to_pylist(), strict=True):
        order = np.argsort(distances(vector, searched, "euclidean"), kind="stable")
        relevant = labels[order] == label
        first.append(relevant[0])
        precision.append(relevant[:10].mean())
        ranks = np.flatnonzero(relevant) + 1
        average.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    # Float32 and double precision break some ties differently.
    assert document["precision_at"]["1"] == pytest.approx(np.mean(first), abs=0.02)
    assert document["precision_at"]["10"] == pytest.approx(np.mean(precision), abs=0.01)
    assert document["map"] == pytest.approx(np.mean(average), abs=0.002)


def test_info_describes_each_kind_of_folder(retr: Retr, gallery: Gallery) -> None:
    embeddings = retr.json("info", gallery.embeddings)
    assert embeddings.keys() == {
        "kind", "format", "version", "encoder", "dim", "dtype", "metric", "source",
        "shard_images", "rows", "shards", "skipped", "complete", "size_bytes",
        "made_by", "passed_over", "skipped_folders", "columns", "assigned",
    }  # fmt: skip
    assert (embeddings["kind"], embeddings["rows"], embeddings["dim"]) == ("embeddings", 60, 3)
    assert (embeddings["shards"], embeddings["complete"]) == (1, True)
    assert embeddings["size_bytes"] == (gallery.embeddings / "part-00000.parquet").stat().st_size
    index = retr.json("info", gallery.index("hnsw"))
    assert index.keys() == {
        "kind", "backend", "options", "metric", "dim", "rows", "encoder", "embeddings",
        "details", "versions", "files", "deleted", "added", "at", "parts",
        "size_bytes", "columns",
    }  # fmt: skip
    assert (index["kind"], index["backend"], index["rows"]) == ("index", "hnsw", 60)
    assert index["options"]["ef"] == 128


@pytest.mark.parametrize(("kind", "files"), [("embeddings", 1), ("exact", 4), ("hnsw", 4)])
def test_verify_accepts_intact_folders(retr: Retr, gallery: Gallery, kind: str, files: int) -> None:
    report = retr.json("verify", gallery.folder / kind)
    assert report == {
        "kind": "embeddings" if kind == "embeddings" else "index",
        "ok": True,
        "rows": 60,
        "files": files,
        "problems": [],
    }


def arguments_of(command: str, gallery: Gallery) -> list[str]:
    made = {
        "encode": [str(gallery.images), "--encoder", "toy", "--out", "made"],
        "index": [str(gallery.embeddings), "--out", "made"],
        "search": [str(gallery.image), "-k", "2", "--index", str(gallery.index())],
        "eval": ["--queries", str(gallery.embeddings), "--database", str(gallery.embeddings)],
        "info": [str(gallery.embeddings)],
        "verify": [str(gallery.embeddings)],
    }
    return [command, *made[command]]


@pytest.mark.parametrize("command", QUIET_COMMANDS)
def test_quiet_prints_nothing(retr: Retr, gallery: Gallery, command: str) -> None:
    outcome = retr(*arguments_of(command, gallery), "--quiet")
    assert (outcome.out, outcome.err) == ("", "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("encode", ["60 embeddings of 3 dimensions by toy in made"]),
        ("index", ["60 rows of 3 dimensions in made", "hnsw, euclidean", "ef 128"]),
        ("search", ["(green)", "rank", "green/7.png", "0.0000"]),
        ("eval", ["60 queries against 60 images, euclidean", "P@k", "mAP", "green"]),
        ("info", ["embeddings: 60 rows of 3 × float32", "toy (", "complete  yes"]),
        ("verify", ["(embeddings) is intact: 60 rows, 1 file"]),
    ],
)
def test_output_for_people_is_text(
    retr: Retr, gallery: Gallery, command: str, said: list[str]
) -> None:
    outcome = retr(*arguments_of(command, gallery))
    assert outcome.err == ""
    for words in said:
        assert words in outcome.out


def test_module_behaves_like_the_console_script(retr: Retr, gallery: Gallery) -> None:
    command = [sys.executable, "-m", "cli.main", "info", str(gallery.embeddings), "--json"]
    done = subprocess.run(command, cwd=retr.cwd, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == retr.json("info", gallery.embeddings)


def test_workspaces_are_separate(tmp_path: Path, gallery: Gallery) -> None:
    retr = Retr(tmp_path, {"RETR_WORKSPACE": str(tmp_path / "of-the-environment")})
    made = retr.json("encode", gallery.images, "--encoder", "toy", "--workspace", "named")
    assert Path(made["out"]).parent == Path("named/embeddings")
    assert not (tmp_path / "of-the-environment").exists()
    message = retr.refused("index")
    assert "retr encode" in message
    assert "of-the-environment" in message
    assert retr.json("index", "--workspace", "named", "--backend", "exact")["rows"] == 60


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["index"], "retr encode"),
        (["search", "{image}"], "retr index"),
        (["eval"], "retr encode --split test"),
    ],
)
def test_empty_workspace_names_the_command_to_run_first(
    retr: Retr, gallery: Gallery, arguments: list[str], remedy: str
) -> None:
    filled = [argument.format(image=gallery.image) for argument in arguments]
    assert f"run '{remedy}' first" in retr.refused(*filled)


def test_float16_embeddings_are_rounded_float32_embeddings(retr: Retr, gallery: Gallery) -> None:
    made = retr.json(
        "encode", gallery.images, "--encoder", "toy", "--dtype", "float16", "--out", "half"
    )
    check_encoded(made, 60)
    table = pq.read_table(retr.cwd / "half" / "part-00000.parquet")
    assert table.schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float16(), nullable=False), 3
    )
    rows, vectors = gallery.read()
    half = open_embeddings(retr.cwd / "half").vectors()
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, vectors.astype(np.float16).astype(np.float32))
    retr.json("index", "half", "--backend", "exact", "--out", "index")
    (answer,) = retr.json("search", gallery.image, "-k", "60", "--index", "index")
    check_nearest(answer["hits"], vectors[rows.index(answer_row(answer, rows))], half, rows, 60)


def answer_row(answer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["path"] == answer["query"])


def test_limit_takes_the_first_images(retr: Retr, gallery: Gallery) -> None:
    check_encoded(
        retr.json("encode", gallery.images, "--encoder", "toy", "--limit", "25", "--out", "few"), 25
    )
    rows, vectors = gallery.read()
    few, few_vectors = open_embeddings(retr.cwd / "few").read()
    assert few.to_pylist() == rows[:25]
    np.testing.assert_array_equal(few_vectors, vectors[:25])


def test_bad_images_are_skipped_counted_and_listed(
    retr: Retr, photos: Path, copied: Callable[[Path], Path]
) -> None:
    from tests.cli.pictures import BAD

    save_bad(photos / "green")
    (photos / "green" / "gone.png").symlink_to(photos / "nowhere.png")
    outcome = retr("encode", photos, "--encoder", "toy", "--out", "made", "--json")
    count = len(BAD) + 1
    assert (outcome.document["rows"], outcome.document["skipped"]) == (30, count)
    assert outcome.err.startswith(f"warning: {count} images could not be read; ")
    assert len(outcome.err.splitlines()) == 1
    rows = open_embeddings(retr.cwd / "made").read()[0]["id"].to_pylist()
    good = [f"{label}/{i}.png" for label in ("blue", "green", "red") for i in range(10)]
    assert rows == good
    skipped = {
        Path(row["path"]).name: row["reason"]
        for row in pq.read_table(retr.cwd / "made" / "skipped.parquet").to_pylist()
    }
    assert skipped.keys() == {*BAD, "gone.png"}
    for name, (_, reason) in BAD.items():
        assert reason in skipped[name]
    assert "no such file" in skipped["gone.png"]
    assert retr.json("verify", "made")["ok"]
    assert retr.json("info", "made")["skipped"] == count


def test_index_of_two_sets_holds_the_rows_of_both(retr: Retr, gallery: Gallery) -> None:
    pixels = [save(retr.cwd / "more" / "grey" / f"more-{i}.png", seed=900 + i) for i in range(5)]
    retr.json("encode", "more", "--encoder", "toy", "--out", "embeddings")
    made = retr.json(
        "index", gallery.embeddings, "embeddings", "--backend", "exact", "--out", "index"
    )
    assert made["rows"] == 65
    rows, vectors = gallery.read()
    more, more_vectors = open_embeddings(retr.cwd / "embeddings").read()
    (answer,) = retr.json("search", "more/grey/more-3.png", "-k", "65", "--index", "index")
    assert answer["hits"][0]["id"] == "grey/more-3.png"
    both = np.concatenate([vectors, more_vectors])
    check_nearest(answer["hits"], mean_colour(pixels[3]), both, rows + more.to_pylist(), 65)


def test_index_adds_and_deletes_rows(retr: Retr, gallery: Gallery) -> None:
    for number in range(5):
        save(retr.cwd / "more" / "grey" / f"more-{number}.png", seed=900 + number)
    retr.json("encode", "more", "--encoder", "toy", "--out", "embeddings")
    made = retr.json("index", gallery.embeddings, "--backend", "exact", "--out", "index")
    more = retr.json("index", "--add", "embeddings", "--out", "index")
    assert (made["rows"], more["rows"]) == (60, 65)
    assert made.keys() == more.keys()
    (answer,) = retr.json("search", "more/grey/more-3.png", "-k", "65", "--index", "index")
    assert answer["hits"][0]["id"] == "grey/more-3.png"
    less = retr.json("index", "--delete", "id=grey/more-3.png", "--out", "index")
    assert less["rows"] == 64
    (answer,) = retr.json("search", "more/grey/more-3.png", "-k", "64", "--index", "index")
    assert "grey/more-3.png" not in [hit["id"] for hit in answer["hits"]]
    assert retr.json("verify", "index")["ok"]


def test_an_index_is_replaced_in_place(retr: Retr, gallery: Gallery) -> None:
    first = retr.json("index", gallery.embeddings, "--backend", "hnsw", "--out", "index")
    retr.json("encode", gallery.images / "red", "--encoder", "toy", "--out", "reds")
    second = retr.json("index", "reds", "--backend", "exact", "--out", "index")
    assert (first["rows"], second["rows"]) == (60, 20)
    assert retr.json("info", "index")["backend"] == "exact"
    assert retr.json("verify", "index")["ok"]
    left = {path.name for path in retr.cwd.iterdir()}
    assert left == {"index", "reds"}
    files = {path.name for path in (retr.cwd / "index").iterdir()}
    assert files - {".lock"} == {
        *("index.faiss", "rows.parquet", "columns.parquet", "contents.parquet", "index.json")
    }


def test_building_an_index_keeps_other_files_of_the_folder(retr: Retr, gallery: Gallery) -> None:
    retr.json("index", gallery.embeddings, "--backend", "exact", "--out", "index")
    # Names that people give to backups and downloads.
    for name in ("index.old", "index.partial"):
        (retr.cwd / name).mkdir()
        (retr.cwd / name / "precious.txt").write_text("mine")
    retr.json("index", gallery.embeddings, "--backend", "exact", "--out", "index")
    for name in ("index.old", "index.partial"):
        assert (retr.cwd / name / "precious.txt").read_text() == "mine"


def test_index_in_a_linked_folder_is_replaced(retr: Retr, gallery: Gallery) -> None:
    (retr.cwd / "disk").mkdir()
    (retr.cwd / "index").symlink_to("disk")
    for _ in range(2):
        retr.json("index", gallery.embeddings, "--backend", "exact", "--out", "index")
        assert retr.json("verify", "index")["ok"]
    assert (retr.cwd / "index").is_symlink()
    assert (retr.cwd / "disk" / "index.json").is_file()


def test_an_index_is_built_in_the_current_folder(tmp_path: Path, gallery: Gallery) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    retr = Retr(folder)
    assert retr.json("index", gallery.embeddings, "--backend", "exact", "--out", ".")["rows"] == 60
    assert retr.json("verify", folder)["ok"]


def test_eval_measures_at_the_given_ks(retr: Retr, gallery: Gallery) -> None:
    # Rankings of this length for each query would not fit into memory.
    arguments = [*arguments_of("eval", gallery), "-k", "10,1000000000"]
    exact = retr.json(*arguments)
    assert exact["precision_at"]["1000000000"] == pytest.approx(19e-9)
    through = retr.json(*arguments, "--index", gallery.index())
    assert through["map"] is None
    for measure in ("precision_at", "recall_at", "map_at"):
        assert through[measure] == pytest.approx(exact[measure])

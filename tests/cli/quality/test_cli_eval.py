"""`retr eval`: protocols, comparisons and exports."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import Retr

EVAL = ("eval", "--queries", "{e}", "--database", "{e}")


def test_unseen_protocol_searches_the_queries_themselves(retr: Retr, gallery: Gallery) -> None:
    plain = retr.json("eval", "--queries", gallery.embeddings, "--database", gallery.embeddings)
    unseen = retr.json(
        "eval", "--queries", gallery.embeddings, "--database", gallery.embeddings,
        "--protocol", "unseen",
    )  # fmt: skip
    assert (plain["protocol"], unseen["protocol"]) == (None, "unseen")
    assert plain["map"] == unseen["map"]
    assert "seed" not in unseen


def test_draw_of_a_protocol_is_saved_and_read_again(retr: Retr) -> None:
    for split in ("train", "test"):
        retr.json("encode", "digits", "--encoder", "toy", "--split", split, "--out", split)
    arguments = ("eval", "--queries", "train", "--database", "test", "--protocol", "hashing-59k")
    first = retr.json(*arguments, "--seed", "5", "--draw", "draw.json")
    drawn = json.loads((retr.cwd / "draw.json").read_text())
    assert (drawn["protocol"], drawn["seed"], len(drawn["queries"])) == ("hashing-59k", 5, 1000)
    assert first["counts"]["queries"] == 1000
    assert first["seed"] == 5
    # The kept draw wins over another seed.
    again = retr.json(*arguments, "--seed", "6", "--draw", "draw.json")
    assert (again["map"], again["seed"]) == (first["map"], 5)
    assert retr.json(*arguments, "--seed", "6")["map"] != first["map"]


def test_two_evaluations_are_compared(retr: Retr, gallery: Gallery) -> None:
    there = [part.format(e=gallery.embeddings) for part in EVAL]
    cosine = retr.json(*there, "--metric", "cosine", "--save", "new/cosine.parquet")
    found = retr.json(*there, "--metric", "manhattan", "--against", "new/cosine.parquet")
    of_map = found["differences"]["map"]
    assert of_map["there"] == pytest.approx(cosine["map"])
    assert of_map["here"] == pytest.approx(found["map"])
    assert of_map["interval"][0] <= of_map["difference"] <= of_map["interval"][1]
    assert 0 < of_map["p"] <= 1
    said = retr(*there, "--metric", "manhattan", "--against", "new/cosine.parquet").out
    assert "95% interval" in said
    assert "p: the probability" in said


def test_run_and_qrels_are_written(retr: Retr, gallery: Gallery) -> None:
    there = [part.format(e=gallery.embeddings) for part in EVAL]
    found = retr.json(
        *there, "-k", "1,5", "--export-run", "run.txt", "--export-qrels", "qrels.txt",
        "--save", "queries.parquet",
    )  # fmt: skip
    run = [line.split(" ") for line in (retr.cwd / "run.txt").read_text().splitlines()]
    assert len(run) == 60 * 5
    relevant = {
        tuple(line.split(" ")[::2]) for line in (retr.cwd / "qrels.txt").read_text().splitlines()
    }
    hits = [(line[0], line[2]) in relevant for line in run]
    assert np.mean(hits) == pytest.approx(found["precision_at"]["5"])
    table = pq.read_table(retr.cwd / "queries.parquet")
    assert np.mean(table["precision_at_5"].to_numpy()) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "offical"], ["unknown protocol 'offical'", "did you mean 'official'?"]),
        (["--draw", "d.json"], ["--draw needs a hashing protocol"]),
        (["--protocol", "unseen", "--draw", "d.json"], ["--draw needs a hashing protocol"]),
        (
            ["--protocol", "unseen", "--index", "{i}"],
            ["--protocol unseen does not", "leave one of them out"],
        ),
        (
            ["--protocol", "hashing-54k"],
            ["class 'blue' has 20 images", "draws 100 queries of each class"],
        ),
        (["--against", "none.parquet"], ["none.parquet not found", "retr eval --save"]),
    ],
)
def test_bad_input_of_eval_is_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: list[str]
) -> None:
    there = [part.format(e=gallery.embeddings) for part in EVAL]
    message = retr.refused(*there, *(a.format(i=gallery.index()) for a in arguments))
    for words in said:
        assert words in message

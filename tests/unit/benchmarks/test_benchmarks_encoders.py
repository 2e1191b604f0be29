"""The scripts that measure encoders, on data small enough to work out by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import ablation, contrastive, distances, sweep
from benchmarks.studies.storage import STORAGE, measure
from encoders.training.recipe import Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import Protocol
from retrieval.storage.cards import Card
from retrieval.storage.files import write_csv


def labelled(split: str, n: int, classes: int, noise: float, seed: int) -> Labelled:
    """Unit vectors near one direction a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    vectors = np.eye(16, dtype=np.float32)[labels] + noise * rng.standard_normal((n, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Labelled(
        vectors.astype(np.float32),
        [f"{split}/{i:05d}" for i in range(n)],
        [str(label) for label in labels],
    )


def test_the_contrastive_loss_of_pairs() -> None:
    # The squares of a published pair: 0.30502 apart; as a negative one it lacks 1 - 0.5523.
    distance = np.sqrt(np.array([2 * 0.15251, 2 * 0.15251]))
    found = contrastive.contrastive(distance, np.array([True, False]), 1.0)
    np.testing.assert_allclose(found, [0.15251, 0.10023], atol=1e-5)
    # Two of either class, at 0 and at 3 on a line: alike pairs are 0 apart, others 3, and one
    # without a label is in no pair.
    images = Labelled(
        np.array([[0], [0], [3], [3], [9]], np.float32),
        [*"abcde"],
        ["near", "near", "far", "far", None],
    )
    document = contrastive.measure(images, 5.0, 1000, 0)
    assert (document["pairs"], document["of_alike"], document["of_others"]) == (1000, 0, 2)
    assert document["loss"] == 1
    assert document["of_any_two"] == pytest.approx(4 / 3)  # four of the six pairs are of others
    low, high = document["interval"]  # type: ignore[misc]
    assert 1 - low == pytest.approx(high - 1)  # type: ignore[operator]
    assert 0.05 < high - 1 < 0.15  # type: ignore[operator]


def test_distances_side_by_side() -> None:
    # From a, c is nearer than b by Euclidean distance alone.
    vectors = np.array([[2, 0], [4.1, 0], [3.5, 1.4]], np.float32)
    images = Labelled(vectors, [*"abc"], ["1", "2", "1"])
    found = {
        metric: distances.measure(images, metric, 1)
        for metric in (Metric.MANHATTAN, Metric.EUCLIDEAN, Metric.COSINE)
    }
    # From c, b is nearer than a, but of one direction with it: the first in the database wins.
    assert [found[metric]["precision_at_1"] for metric in found] == [0, 0.5, 0.5]
    assert all(each["queries"] == 2 for each in found.values())
    low, high = found[Metric.EUCLIDEAN]["intervals"]["map"]  # type: ignore[index, call-overload]
    assert low < high


def test_storage_forms_round_as_specified() -> None:
    vectors = labelled("test", 20, 4, 0.3, 0).vectors
    mean = vectors.mean(axis=0)
    kept = {name: stored(vectors, mean) for name, (_, stored) in STORAGE.items()}
    assert np.array_equal(kept["float32"], vectors)
    np.testing.assert_allclose(kept["float16"], vectors, atol=1e-3)
    steps = kept["int8"] / np.abs(kept["int8"]).max(axis=1, keepdims=True) * 127
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)
    np.testing.assert_allclose(kept["int8"], vectors, atol=1 / 250)  # half a step at most
    cosine = (kept["int8"] * vectors).sum(1) / np.linalg.norm(kept["int8"], axis=1)
    assert cosine.min() > 0.999
    assert np.array_equal(kept["binary"] > 0, vectors > mean)
    assert set(np.unique(kept["binary"])) == {-1.0, 1.0}


def test_every_protocol_and_storage_has_a_row() -> None:
    test, train = labelled("test", 500, 4, 0.25, 0), labelled("train", 2500, 4, 0.25, 1)
    seen = np.zeros(len(train), bool)
    for label in "0123":
        seen[np.flatnonzero(np.array(train.labels) == label)[:500]] = True
    assert len(measure(test, train, Metric.COSINE, ~seen, seed=0)) == 3 * 4
    rows = measure(test, train, Metric.COSINE, seen, seed=0)
    assert len(rows) == 4 * 4
    by = {(row["protocol"], row["storage"]): row for row in rows}
    assert by["official", "float32"]["bytes"] == 64
    assert by["official", "binary"]["bytes"] == 2
    for protocol in Protocol:
        whole = by[protocol, "float32"]["map"]
        assert isinstance(whole, float)
        assert whole > 0.7
        assert by[protocol, "int8"]["map"] == pytest.approx(whole, abs=0.02)
        assert by[protocol, "binary"]["map"] < whole


def test_each_part_of_an_embedding_has_a_row(tmp_path: Path) -> None:
    recipe = Recipe(
        "siamese",
        network={"widths": [4, 4, 4], "dim": 3, "class_sharpness": 16.0},
        losses=(Loss("normalised-softmax"),),
        epochs=4,
        data=Data("digits", per_class=10, validation=30),
        sampler=Sampler(batch=35),
        optimizer=Optimizer("adamw", lr=0.01),
    )
    train(recipe, tmp_path)
    rows = [*ablation.measure(tmp_path, "train", 300)]
    assert [row["numbers"] for row in rows] == [3, 3, 13, 3, 13]
    held_out = 1437 - 70  # the rest of the test split, without training images
    assert {row["images"] for row in rows} == {300}
    assert len({row["map"] for row in rows}) == len(rows)
    few = next(ablation.measure(tmp_path, "train", 10_000))
    assert few["images"] == held_out


def test_encoder_with_several_sides_has_one_more_row() -> None:
    assert [*ablation.steps({"shift": 1})] == [*ablation.STEPS]
    steps = ablation.steps({"embed_sides": [128, 160]})
    *at_one, at_all = steps.items()
    assert [name for name, _ in at_one] == [*ablation.STEPS]
    assert all(settings["embed_sides"] == [] for _, settings in at_one)
    assert at_all == ("mirror, shift, shares, sides", {"mirror": True, "shift": 1})


SMALL = """
encoder = "siamese"
network = {widths = [4, 4, 4], dim = 3}
losses = [{name = "contrastive"}]
epochs = 1
data = {source = "digits", classes = ["0", "1", "2"], per_class = 20, validation = 15}
sampler = {batch = 15}
optimizer = {name = "adamw", lr = 0.01}
"""


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_combination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    out = tmp_path / "out"
    varied = ["sampler.batch=15|45", "network.widths=[4, 4, 4]|[8, 4, 4]"]
    given = ["sweep", str(recipe), "--set", "epochs=2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*given, *(w for text in varied for w in ("--vary", text))])
    sweep.main()
    with (out / "sweep.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["sampler.batch"], row["network.widths"]) for row in rows] == [
        ("15", "[4, 4, 4]"), ("15", "[8, 4, 4]"), ("45", "[4, 4, 4]"), ("45", "[8, 4, 4]"),
    ]  # fmt: skip
    weights = [int(row["weights"]) for row in rows]
    assert weights[0] == weights[2] < weights[1] == weights[3]
    assert all(0.4 < float(row[group]) <= 1 for row in rows for group in sweep.GROUPS)
    assert len({row["joint"] for row in rows}) > 1
    assert (out / "sweep.png").stat().st_size > 10_000
    folder = out / "sampler.batch=45,network.widths=[8, 4, 4]"
    card = Card.read(folder)
    assert card.training.recipe["epochs"] == 2
    before = (folder / "card.json").stat().st_mtime_ns
    assert [*sweep.measure(str(recipe), ["epochs=2"], varied, out)][3]["joint"] == float(
        rows[3]["joint"]
    )
    assert (folder / "card.json").stat().st_mtime_ns == before  # nothing was trained again


def test_a_sweep_keeps_rows_of_unlike_groups(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1, "joint": 0.5}, {"x": 2, "held_out": 0.25}])
    assert (tmp_path / "a.csv").read_text().split() == ["x,joint,held_out", "1,0.5,", "2,,0.25"]


@pytest.mark.parametrize("text", ["epochs", "epochs=", "=1|2", "epochs=1||2"])
def test_wrong_vary_argument_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="has no key, = and values; write --vary"):
        [*sweep.combinations([text])]

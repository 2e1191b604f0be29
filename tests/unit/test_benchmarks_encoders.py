"""The scripts that measure encoders, on data small enough to work out by hand."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.storage import STORAGE, measure
from encoders.training.recipe import Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.contracts import Metric
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import Protocol


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


def test_storage_keeps_what_it_can() -> None:
    vectors = labelled("test", 20, 4, 0.3, 0).vectors
    mean = vectors.mean(axis=0)
    kept = {name: stored(vectors, mean) for name, (_, stored) in STORAGE.items()}
    assert np.array_equal(kept["float32"], vectors)
    np.testing.assert_allclose(kept["float16"], vectors, atol=1e-3)
    assert np.array_equal(kept["int8"], kept["int8"].astype(np.int8))
    assert np.abs(kept["int8"]).max(axis=1).tolist() == [127] * 20
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
    rows = [*ablation.measure(tmp_path, "train", 1_000)]
    assert [row["numbers"] for row in rows] == [3, 3, 13, 3, 13]
    held_out = 1437 - 70  # what the test split leaves, less what was trained on
    assert {row["images"] for row in rows} == {1_000}
    assert len({row["map"] for row in rows}) == len(rows)
    (few, *_) = ablation.measure(tmp_path, "train", 10_000)
    assert few["images"] == held_out

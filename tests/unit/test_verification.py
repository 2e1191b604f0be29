"""Thresholds, ROC, equal error rate and calibration, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.contracts import Json, Metric
from retrieval.errors import BadData, BadInput
from retrieval.quality.calibration import (
    Calibration,
    Method,
    best_threshold,
    expected_calibration_error,
)
from retrieval.quality.verification import Procedure, verify_pairs
from retrieval.storage.files import read_json, write_json

# Pairs by distance: alike at .1, .2, .3 and .6; others at .25, .5, .7 and .9.
DISTANCES = np.array([0.6, 0.1, 0.2, 0.3, 0.25, 0.5, 0.7, 0.9])
ALIKE = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
PROCEDURE = Procedure(Metric.COSINE)


def test_the_best_threshold_by_hand() -> None:
    # Up to .3: 3 of 4 alike and 3 of 4 others are right. So they are up to .2 (2 + 4) and up to
    # .6 (4 + 2): the lowest of equals lies between .2 and .25.
    assert best_threshold(DISTANCES, ALIKE) == pytest.approx(0.225)
    assert best_threshold(np.array([1.0, 2.0]), np.array([True, False])) == 1.5
    # Where even the best is to call no pair alike, or all, the threshold still is a distance.
    assert best_threshold(np.array([1.0, 1.0, 1.0]), np.array([True, True, False])) == 1.0


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30))
def test_no_other_threshold_is_better(pairs: list[tuple[int, bool]]) -> None:
    distances = np.array([d for d, _ in pairs], float)
    alike = np.array([a for _, a in pairs])
    if alike.all() or not alike.any():
        with pytest.raises(BadInput, match="show the same class"):
            best_threshold(distances, alike)
        return
    right = ((distances <= best_threshold(distances, alike)) == alike).mean()
    assert right == max(((distances <= t) == alike).mean() for t in distances)


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_the_auc_counts_pairs_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    near = [d for d, alike in pairs if alike]
    far = [d for d, alike in pairs if not alike]
    if not near or not far:
        return
    alike = np.array([a for _, a in pairs])
    classes = np.zeros((len(alike), 2), int)
    distances = np.array([d for d, _ in pairs], float)
    found = verify_pairs(distances, alike, classes, ["a"], calibration(), PROCEDURE)
    won = sum((a < b) + (a == b) / 2 for a in near for b in far)
    assert found.auc == pytest.approx(won / (len(near) * len(far)))
    assert found.roc[0].tolist() == [0, 0]
    assert found.roc[-1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("distances", "alike", "expected"),
    [
        (DISTANCES, ALIKE, 0.25),  # up to .3, 1 of 4 others is accepted, 1 of 4 alike rejected
        ([1.0, 1.0], [1, 0], 0.5),  # all there is, is the line from (0, 0) to (1, 1)
        ([1.0, 2.0], [1, 0], 0.0),  # told apart without an error
        ([2.0, 1.0], [1, 0], 1.0),  # the worst there can be
    ],
)
def test_the_equal_error_rate_by_hand(
    distances: list[float], alike: list[int], expected: float
) -> None:
    kinds = np.array(alike, bool)
    classes = np.zeros((len(kinds), 2), int)
    found = verify_pairs(np.array(distances), kinds, classes, ["a"], calibration(), PROCEDURE)
    assert found.eer == expected


def test_the_calibration_error_by_hand() -> None:
    # Two bins: .1 and .3 say .4 of an alike pair, and there is 1; .8 and 1 say 1.8, there are 2.
    error = expected_calibration_error(
        np.array([0.1, 0.3, 0.8, 1.0]), np.array([0, 1, 1, 1], bool), bins=2
    )
    assert error == pytest.approx((0.6 + 0.2) / 4)


@pytest.mark.parametrize("method", Method)
def test_probabilities_are_what_is_met(method: Method) -> None:
    generator = np.random.default_rng(0)
    distances = generator.uniform(0, 4, 20_000)
    true = 1 / (1 + np.exp(-(5 - 2.5 * distances)))
    alike = generator.random(20_000) < true
    fitted = Calibration.fitted(distances, alike, method, Metric.COSINE, "f" * 64)
    np.testing.assert_allclose(
        fitted.curve.probability(np.array([0.5, 2.0, 3.5])), [0.977, 0.5, 0.023], atol=0.06
    )
    assert fitted.threshold == pytest.approx(2, abs=0.15)
    fresh = generator.uniform(0, 4, 20_000)
    met = generator.random(20_000) < 1 / (1 + np.exp(-(5 - 2.5 * fresh)))
    assert expected_calibration_error(fitted.curve.probability(fresh), met) < 0.015
    assert (np.diff(fitted.curve.probability(np.linspace(-1, 5, 50))) <= 0).all()


@pytest.mark.parametrize("method", Method)
def test_a_calibration_is_read_as_it_was_written(method: Method, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    written = calibration(method)
    written.write(path)
    assert Calibration.read(path) == written
    path.write_text(path.read_text().replace('"curve"', '"kurve"'))
    with pytest.raises(BadData, match="lacks or misstates 'curve'; calibrate anew"):
        Calibration.read(path)


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({"distances": [0.1, 0.2], "probabilities": [0.5]}, "not of one length"),
        ({"distances": [], "probabilities": []}, "not of one length"),
        ({"distances": [0.2, 0.1], "probabilities": [0.9, 0.1]}, "which do not ascend"),
    ],
)
def test_an_impossible_curve_is_named(tmp_path: Path, curve: dict[str, Json], said: str) -> None:
    path = tmp_path / "calibration.json"
    fitted = Calibration.fitted(DISTANCES, ALIKE, Method.ISOTONIC, Metric.COSINE, "e")
    fitted.write(path)
    assert Calibration.read(path) == fitted
    write_json(path, {**read_json(path), "curve": curve})
    with pytest.raises(BadData, match=said):
        Calibration.read(path)


def test_verification_by_hand() -> None:
    classes = np.array([[0, 0], [0, 0], [1, 1], [1, 1], [0, 1], [1, 0], [0, 1], [2, 0]])
    procedure = replace(PROCEDURE, thresholds=(0.3, 10))
    found = verify_pairs(DISTANCES, ALIKE, classes, ["a", "b", "c"], calibration(), procedure)
    # The threshold is .225: the alike pairs at .6 and .3 are taken for others.
    assert (found.pairs, found.accuracy) == (8, 6 / 8)
    assert found.accuracy_at == {0.3: 6 / 8, 10: 0.5}
    expected = [[0.5, 1, 1], [1, 0.5, np.nan], [1, np.nan, np.nan]]
    np.testing.assert_array_equal(found.matrix(), expected)
    document = found.to_json()
    assert document["per_class"] == {"a": {"a": 0.5, "b": 1, "c": 1}, "b": {"a": 1, "b": 0.5},
                                     "c": {"a": 1}}  # fmt: skip
    # Nearer than each of the 4 others: .1 and .2 than 4, .3 than 3, .6 than 2: 13 of 16.
    assert found.auc == 13 / 16


def calibration(method: Method | None = Method.LOGISTIC) -> Calibration:
    return Calibration.fitted(DISTANCES, ALIKE, method, Metric.COSINE, "f" * 64)


def test_a_scorer_has_probabilities_of_its_own() -> None:
    given = calibration(None)
    assert given.curve.probability(np.array([0.0, 0.25, 1.0])).tolist() == [1, 0.75, 0]

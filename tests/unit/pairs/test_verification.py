"""Thresholds, ROC, equal error rate and calibration, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.contracts import Json, Metric
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.pairs.calibration import (
    Calibration,
    FittedTo,
    Method,
    best_threshold,
    expected_calibration_error,
    find_calibration,
)
from retrieval.pairs.draw import Pairs
from retrieval.pairs.verification import (
    Procedure,
    check_apart,
    split,
    validation_classes,
    verify_pairs,
)
from retrieval.quality.labelled import Labelled
from retrieval.registry import open_encoder
from retrieval.storage.files import read_json, sealed, write_json
from retrieval.storage.sets.manifest import EncoderFacts, SourceFacts
from retrieval.workspace import Workspace

# Pairs by distance: alike at .1, .2, .3 and .6; others at .25, .5, .7 and .9.
DISTANCES = np.array([0.6, 0.1, 0.2, 0.3, 0.25, 0.5, 0.7, 0.9])
ALIKE = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
PROCEDURE = Procedure(Metric.COSINE)
FITTED_TO = FittedTo(8, 16, ("a", "b"), "photos")


def pairs_of(alike: NDArray[np.bool_]) -> Pairs:
    """Pairs of images of their own."""
    rows = np.arange(2 * len(alike))
    return Pairs(rows[::2], rows[1::2], alike)


def test_the_best_threshold_by_hand() -> None:
    # Up to .3: 3 of 4 alike and 3 of 4 others are right. So they are up to .2 (2 + 4) and up to
    # .6 (4 + 2): the lowest of equals lies between .2 and .25.
    assert best_threshold(DISTANCES, ALIKE) == pytest.approx(0.225)
    assert best_threshold(np.array([1.0, 2.0]), np.array([True, False])) == 1.5
    # The threshold is a distance even if the best choice is to call no pair alike, or all.
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
    found = verify_pairs(distances, pairs_of(alike), classes, ["a"], calibration(), PROCEDURE)
    won = sum((a < b) + (a == b) / 2 for a in near for b in far)
    assert found.auc == pytest.approx(won / (len(near) * len(far)))
    assert found.roc[0].tolist() == [0, 0]
    assert found.roc[-1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("distances", "alike", "expected"),
    [
        (DISTANCES, ALIKE, 0.25),  # up to .3, 1 of 4 others is accepted, 1 of 4 alike rejected
        ([1.0, 1.0], [1, 0], 0.5),  # all there is, is the line from (0, 0) to (1, 1)
        ([1.0, 2.0], [1, 0], 0.0),  # separated without an error
        ([2.0, 1.0], [1, 0], 1.0),  # the worst there can be
    ],
)
def test_the_equal_error_rate_by_hand(
    distances: list[float], alike: list[int], expected: float
) -> None:
    kinds = np.array(alike, bool)
    classes = np.zeros((len(kinds), 2), int)
    found = verify_pairs(
        np.array(distances), pairs_of(kinds), classes, ["a"], calibration(), PROCEDURE
    )
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
    fitted = Calibration.fitted(distances, alike, method, Metric.COSINE, "f" * 64, FITTED_TO)
    np.testing.assert_allclose(
        fitted.curve.probability(np.array([0.5, 2.0, 3.5])), [0.977, 0.5, 0.023], atol=0.06
    )
    assert fitted.threshold == pytest.approx(2, abs=0.15)
    fresh = generator.uniform(0, 4, 20_000)
    met = generator.random(20_000) < 1 / (1 + np.exp(-(5 - 2.5 * fresh)))
    assert expected_calibration_error(fitted.curve.probability(fresh), met) < 0.015
    assert (np.diff(fitted.curve.probability(np.linspace(-1, 5, 50))) <= 0).all()


@pytest.mark.parametrize("method", [*Method, None])
def test_a_calibration_is_read_as_it_was_written(method: Method | None, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    written = replace(calibration(method), ece=0.25 if method else None)
    written.write(path)
    assert Calibration.read(path) == written
    document = read_json(path)
    path.write_text(path.read_text().replace('"threshold"', '"treshold"'))
    with pytest.raises(BadData, match="checksum mismatch; calibrate again"):
        Calibration.read(path)
    del document["threshold"]
    write_json(path, sealed(document))
    with pytest.raises(BadData, match="field 'threshold' is missing; calibrate again"):
        Calibration.read(path)


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({"distances": [0.1, 0.2], "probabilities": [0.5]}, "differ in length"),
        ({"distances": [], "probabilities": []}, "differ in length"),
        ({"distances": [0.2, 0.1], "probabilities": [0.9, 0.1]}, "do not ascend"),
    ],
)
def test_an_impossible_curve_is_named(tmp_path: Path, curve: dict[str, Json], said: str) -> None:
    path = tmp_path / "calibration.json"
    fitted = Calibration.fitted(DISTANCES, ALIKE, Method.ISOTONIC, Metric.COSINE, "e", FITTED_TO)
    fitted.write(path)
    assert Calibration.read(path) == fitted
    write_json(path, sealed({**read_json(path), "curve": curve}))
    with pytest.raises(BadData, match=said):
        Calibration.read(path)


def test_verification_by_hand() -> None:
    classes = np.array([[0, 0], [0, 0], [1, 1], [1, 1], [0, 1], [1, 0], [0, 1], [2, 0]])
    procedure = replace(PROCEDURE, thresholds=(0.3, 10))
    pairs = pairs_of(ALIKE)
    found = verify_pairs(DISTANCES, pairs, classes, ["a", "b", "c"], calibration(), procedure)
    # The threshold is .225: the alike pairs at .6 and .3 are taken for others.
    assert (found.pairs, found.accuracy) == (8, 6 / 8)
    assert found.accuracy_at == {0.3: 6 / 8, 10: 0.5}
    expected = [[0.5, 1, 1], [1, 0.5, np.nan], [1, np.nan, np.nan]]
    np.testing.assert_array_equal(found.matrix(), expected)
    document = found.to_json()
    assert document["per_class"] == {"a": {"a": 0.5, "b": 1, "c": 1}, "b": {"a": 1, "b": 0.5},
                                     "c": {"a": 1}}  # fmt: skip
    # 6 of 8 pairs that share no image are right.
    reach = 1.96 * np.sqrt(6 / 8 * 2 / 8 / 8)
    assert found.intervals[None] == pytest.approx((6 / 8 - reach, 6 / 8 + reach))
    assert found.margin == pytest.approx(reach)
    assert document["intervals"]["accuracy"] == [*found.intervals[None]]  # type: ignore[call-overload, index]
    # Nearer than each of the 4 others: .1 and .2 than 4, .3 than 3, .6 than 2: 13 of 16.
    assert found.auc == 13 / 16


def calibration(method: Method | None = Method.LOGISTIC) -> Calibration:
    return Calibration.fitted(DISTANCES, ALIKE, method, Metric.COSINE, "f" * 64, FITTED_TO)


def test_a_scorer_has_probabilities_of_its_own() -> None:
    given = calibration(None)
    assert given.curve.probability(np.array([0.0, 0.25, 1.0])).tolist() == [1, 0.75, 0]


def labelled(*labels: str | None) -> Labelled:
    rows = range(len(labels))
    return Labelled(np.zeros((len(labels), 1), np.float32), [f"s: {i}" for i in rows], [*labels])


def test_validation_takes_a_fifth_of_each_class_and_pairs_are_left_on_both_sides() -> None:
    images = labelled(*"a" * 50, *"b" * 7, *"c" * 4, *"d" * 3, "e", None, None)
    known = np.zeros(len(images), bool)
    known[:10] = True
    tested, validating = split(images, known, 0)
    assert validating.rows_of_classes() == {"a": 8, "b": 2, "c": 2}
    assert tested.rows_of_classes() == {"a": 42, "b": 5, "c": 2, "d": 3, "e": 1}
    assert len(tested) + len(validating) == len(images)
    assert not {f"s: {i}" for i in range(10)} & {*validating.ids}
    again, _ = split(images, known, 0)
    assert again.ids == tested.ids
    assert split(images, known, 1)[0].ids != tested.ids


@pytest.mark.parametrize(
    ("validation", "tested", "groups", "expected"),
    [
        ("abcd", "abcd", {}, "abcd"),
        ("abcd", "ab", {}, "ab"),
        ("abcd", "xy", {}, "abcd"),  # what there is
        ("abcd", "abcd", {"trained": "ab", "held_out": "cd"}, "ab"),
        ("abcd", "cd", {"trained": "ab", "held_out": "cd"}, "ab"),  # never those held out
        ("abcd", "acd", {"trained": "ab", "held_out": "cd"}, "ab"),
        ("abcd", "bcd", {"trained": "abc", "held_out": "d"}, "bc"),
        ("cd", "cd", {"trained": "", "held_out": "cd"}, "cd"),  # there is nothing else
    ],
)
def test_validation_pairs_are_of_classes_that_were_trained_on(
    validation: str, tested: str, groups: dict[str, str], expected: str
) -> None:
    letters = {name: [*classes] for name, classes in groups.items()}
    found = validation_classes(labelled(*validation), [*tested], letters)
    assert "".join(found) == expected


def test_images_of_both_sides_are_found_under_any_name() -> None:
    photos = SourceFacts("photos", "1" * 64, 4)
    some = SourceFacts("photos", "2" * 64, 2, first_of="1" * 64)
    copy = SourceFacts("copy", "3" * 64, 2, first_of="1" * 64)
    other = SourceFacts("other", "4" * 64, 2)

    def images(name: str, *ids: str, root: str) -> Labelled:
        paths = pa.chunked_array([[f"/{root}/{i}" for i in ids]])
        vectors = np.zeros((len(ids), 1), np.float32)
        return Labelled(vectors, [f"{name}: {i}" for i in ids], ["a"] * len(ids), paths)

    test = images("photos", "0", "1", root="photos")
    check_apart(test, images("photos", "2", "3", root="photos"), photos, some)
    check_apart(test, images("copy", "2", "3", root="copy"), photos, copy)
    check_apart(test, images("other", "0", "1", root="other"), photos, other)
    for validation, facts, said in (
        (images("photos", "1", "2", root="photos"), some, "1 images"),  # by id and by path
        (
            images("copy", "1", "2", root="copy"),
            copy,
            "1 images are in both the validation",
        ),
        (images("other", "1", "2", root="photos"), other, "such as 'other: 1'"),
    ):
        with pytest.raises(Mismatch, match=said):
            check_apart(test, validation, photos, facts)


@pytest.mark.parametrize("name", ["siamese", "siamese-quick"])
def test_encoders_that_know_classes_ship_with_a_probability(name: str, tmp_path: Path) -> None:
    encoder = open_encoder(name, "cpu")
    facts = EncoderFacts.of(encoder)
    found = find_calibration(
        facts, encoder.metric, Workspace.at(tmp_path).calibrations_folder(facts)
    )
    assert found is not None
    assert found.fitted_to.source == "cifar10/test"
    assert found.ece is not None
    assert found.ece < 0.02
    assert found.curve is not None
    same, other = found.curve.probability(np.array([0.0, 1.5]))
    assert same > 0.9
    assert other < 0.1
    assert find_calibration(facts, Metric.EUCLIDEAN, tmp_path) is None

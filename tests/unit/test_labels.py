"""Labels and ids that are not text, through everything that compares them."""

import math
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval import Labelled, evaluate
from retrieval.contracts import Metric, Vectors
from retrieval.drawing.plots import draw_map
from retrieval.errors import BadInput, Mismatch
from retrieval.labels import as_ids, as_labels
from retrieval.pairs.draw import draw_pairs
from retrieval.pairs.duplicates import Duplicate, Duplicates
from retrieval.pairs.verification import Procedure, check_apart, class_groups, verify
from retrieval.quality.curves import confusion, precision_recall
from retrieval.quality.evaluation import evaluate_hits
from retrieval.quality.exchange import write_qrels, write_queries, write_run
from retrieval.quality.protocols import Protocol, sides_of
from retrieval.quality.ranking import nearest
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import SourceFacts
from tests.made import embeddings


class Animal(Enum):
    CAT = 1


class Number(IntEnum):
    ONE = 1


class Word(str, Enum):  # noqa: UP042 - not StrEnum, whose text is its value anyway
    CAT = "cat"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat", "cat"),
        (np.str_("cat"), "cat"),
        (Word.CAT, "cat"),
        ("", ""),
        ("01", "01"),
        ("1.0", "1.0"),
        ("nan", "nan"),
        ("cafe\u0301", "caf\u00e9"),
        (b"cat", "cat"),
        (b"\xff", "\\xff"),
        (np.bytes_(b"cat"), "cat"),
        (1, "1"),
        (-1, "-1"),
        (2**70, str(2**70)),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
        (1.0, "1"),
        (-0.0, "0"),
        (np.float16(3), "3"),
        (1e20, "100000000000000000000"),
        (0.5, "0.5"),
        (np.float32(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (math.inf, "inf"),
        (Decimal("2.0"), "2"),
        (Fraction(6, 3), "2"),
        (Fraction(1, 3), "1/3"),
        (True, "True"),
        (np.False_, "False"),
        (Number.ONE, "1"),
        (Animal.CAT, "Animal.CAT"),
        (("cat", 1), "('cat', 1)"),
        (date(2024, 2, 29), "2024-02-29"),
        (torch.tensor(4), "4"),
        (np.array(5), "5"),
        (None, None),
        (math.nan, None),
        (np.float32("nan"), None),
        (Decimal("NaN"), None),
        (np.datetime64("NaT"), None),
        (pd.NaT, None),
        (pd.NA, None),
    ],
)
def test_a_label_as_text(value: Any, text: str | None) -> None:
    assert as_labels([value]) == [text]
    assert type(as_labels([value])[0]) in (str, type(None))


THREE = ["1", None, "2"]


@pytest.mark.parametrize(
    "labels",
    [
        [1, None, 2],
        (1.0, math.nan, 2.0),
        np.array([1, np.nan, 2]),
        np.array([1, None, 2], object),
        np.array(["1", None, "2"], object),
        np.ma.masked_array([1, 7, 2], [False, True, False]),
        pd.Series([1, None, 2]),
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Series([1, 9, 2], index=[2, 1, 0]).where(lambda of: of < 9),
        pd.Series(["1", None, "2"]),
        pd.Series(["1", None, "2"], dtype="string"),
        pd.Categorical([1, None, 2]),
        pd.Series(["1", None, "2"], dtype="category"),
        pa.array([1, None, 2]),
        pa.chunked_array([["1", None], ["2"]]),
        torch.tensor([1, math.nan, 2]),
        {"a": 1, "b": None, "c": 2}.values(),
    ],
    ids=lambda of: type(of).__name__,
)
def test_labels_of_lists_and_arrays(labels: Any) -> None:
    assert as_labels(labels) == THREE
    assert Labelled(np.zeros((3, 2), np.float32), [*"abc"], labels).labels == THREE


@given(st.lists(st.integers(-(2**53), 2**53)))
def test_whole_numbers_of_all_types_are_the_same_labels(numbers: list[int]) -> None:
    expected = [str(number) for number in numbers]
    assert as_labels(numbers) == expected
    assert as_labels(np.array(numbers, np.int64)) == expected
    assert as_labels(np.array(numbers, np.float64)) == expected
    assert as_labels(pd.Series(numbers, dtype="Int64")) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 2)), r"labels have shape \(3, 2\); give \(n,\)"),
        (torch.zeros(3, 1), r"labels have shape \(3, 1\)"),
        (np.array(3), r"labels have shape \(\)"),
        ("cat", "labels are a single str; give a list, one for each vector"),
        (b"cat", "labels are a single bytes"),
        (None, "labels are a single NoneType"),
        (3, "labels are a single int"),
        (["a", ["b"], "c"], "the label of row 1 is a list; give text or a number"),
        (["a", "b", {}], "the label of row 2 is a dict"),
        ([np.zeros(2), "b", "c"], "the label of row 0 is a ndarray"),
    ],
)
def test_invalid_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Labelled(np.zeros((3, 2), np.float32), [*"abc"], labels)


def test_ids_as_text() -> None:
    assert as_ids(np.arange(3)) == as_ids([0.0, 1, "2"]) == ["0", "1", "2"]
    # Two files may differ by their Unicode form alone.
    assert as_ids(["cafe\u0301", "caf\u00e9"]) == ["cafe\u0301", "caf\u00e9"]
    for missing in (None, math.nan, pd.NA):
        with pytest.raises(BadInput, match="the id of row 1 is missing"):
            as_ids(["a", missing])
    with pytest.raises(BadInput, match="duplicate id '1'"):
        Labelled(np.zeros((2, 1), np.float32), [1, 1.0], ["a", "b"])
    with pytest.raises(Mismatch, match="2 vectors have 3 ids and 2 labels"):
        Labelled(np.zeros((2, 1), np.float32), range(3), [1, 2])


def clusters(count: int, seed: int) -> tuple[Vectors, Any]:
    """Vectors of three classes, and the classes' numbers."""
    draw = np.random.default_rng(seed)
    numbers = draw.integers(0, 3, count)
    vectors = np.eye(3, 8)[numbers] * 2 + draw.normal(size=(count, 8))
    return vectors.astype(np.float32), numbers


(V, Y), (W, Z) = clusters(60, 1), clusters(90, 2)
A, B = [f"q{i}" for i in range(60)], [f"d{i}" for i in range(90)]
TEXT = Labelled(V, A, [str(y) for y in Y]), Labelled(W, B, [str(z) for z in Z])
LABEL_ARRAYS = {
    "int64": np.asarray,
    "uint8": lambda numbers: numbers.astype(np.uint8),
    "float32": lambda numbers: numbers.astype(np.float32),
    "list": lambda numbers: numbers.tolist(),
    "floats": lambda numbers: [float(number) for number in numbers],
    "object": lambda numbers: numbers.astype(object),
    "text": lambda numbers: numbers.astype(str),
    "Series": lambda numbers: pd.Series(numbers, index=range(len(numbers))[::-1]),
    "Int64": lambda numbers: pd.Series(numbers, dtype="Int64"),
    "Categorical": lambda numbers: pd.Categorical(numbers),
    "Arrow": pa.array,
    "torch": torch.from_numpy,
}


@pytest.mark.parametrize("of_database", LABEL_ARRAYS)
@pytest.mark.parametrize("of_queries", LABEL_ARRAYS)
def test_labels_of_any_two_kinds_are_compared(of_queries: str, of_database: str) -> None:
    queries = Labelled(V, A, LABEL_ARRAYS[of_queries](Y))
    database = Labelled(W, B, LABEL_ARRAYS[of_database](Z))
    right = evaluate(*TEXT, Metric.COSINE)
    found = evaluate(queries, database, Metric.COSINE)
    assert found.to_json() == right.to_json()
    assert found.per_query.labels == right.per_query.labels


def test_booleans_are_labels_of_their_own() -> None:
    asked, searched = Labelled(V, A, Y == 0), Labelled(W, B, Z == 0)
    words = [
        Labelled(vectors, ids, np.where(zeros, "True", "False"))
        for vectors, ids, zeros in ((V, A, Y == 0), (W, B, Z == 0))
    ]
    found = evaluate(asked, searched, Metric.COSINE)
    assert found.means == evaluate(*words, Metric.COSINE).means
    assert sorted(found.per_class) == ["False", "True"]
    with pytest.raises(BadInput, match="none of 60 queries shares its label"):
        evaluate(asked, Labelled(W, B, (Z == 0).astype(int)), Metric.COSINE)


def test_unknown_labels_are_counted_and_relevant_to_none() -> None:
    unknown = Y.astype(float)
    unknown[:7] = np.nan
    found = evaluate(Labelled(V, A, unknown), TEXT[1], Metric.COSINE)
    assert (found.unlabelled, found.queries) == (7, 53)
    missing = Z.astype(object)
    missing[Z == 2] = None
    found = evaluate(TEXT[0], Labelled(W, B, missing), Metric.COSINE)
    assert found.without_relevant == int((Y == 2).sum())


def test_measures_beside_the_means_take_numbers(tmp_path: Path) -> None:
    queries, database = Labelled(V, A, Y), Labelled(W, B, Z.astype(float))
    texts = evaluate(*TEXT, Metric.COSINE, depth=5)
    found = evaluate(queries, database, Metric.COSINE, depth=5)
    names, shares = confusion(found, database)
    assert names == ["0", "1", "2"]
    np.testing.assert_array_equal(shares, confusion(texts, TEXT[1])[1])
    curves = precision_recall(queries, database, Metric.COSINE)
    np.testing.assert_array_equal(curves.overall, precision_recall(*TEXT, Metric.COSINE).overall)
    assert list(curves.by_label) == names
    for name, (result, of) in {"numbers": (found, database), "texts": (texts, TEXT[1])}.items():
        write_queries(tmp_path / name / "queries.parquet", result, {})
        write_run(tmp_path / name / "run", result, of, "tag")
        write_qrels(tmp_path / name / "qrels", result, of)
    for file in ("queries.parquet", "run", "qrels"):
        contents = [(tmp_path / name / file).read_bytes() for name in ("numbers", "texts")]
        assert contents[0] == contents[1]


def test_pairs_and_verification_take_numbers() -> None:
    queries, database = Labelled(V, A, Y), Labelled(W, B, Z)
    procedure = Procedure(Metric.COSINE, count=40)
    groups = class_groups(queries.classes(), None, [2])
    assert groups == {"trained": {"0", "1"}, "held_out": {"2"}}
    texts = verify(*TEXT, procedure, "encoder", groups)
    found = verify(queries, database, procedure, "encoder", {"trained": [0, 1.0], "held_out": [2]})
    np.testing.assert_array_equal(found.distances, texts.distances)
    assert {name: of.to_json() for name, of in found.groups.items()} == {
        name: of.to_json() for name, of in texts.groups.items()
    }
    drawn = [draw_pairs(labels, 20, "random", 0) for labels in (Y, Y.tolist(), Y.astype(str))]
    for pairs in drawn:
        np.testing.assert_array_equal(pairs.second, drawn[0].second)
        assert ((Y[pairs.first] == Y[pairs.second]) == pairs.alike).all()
    unknown = draw_pairs(["a", "a", None, math.nan, "b", "b"], 50, "random", 0)
    assert {*unknown.first.tolist(), *unknown.second.tolist()} == {0, 1, 4, 5}


def test_classes_may_be_named_by_numbers() -> None:
    images = Labelled(V, A, Y)
    np.testing.assert_array_equal(images.numbers([0, 1, 2]), Y)
    np.testing.assert_array_equal(images.numbers([2.0]), np.where(Y == 2, 0, -1))
    assert len(images.of_classes([1])) == (Y == 1).sum()
    images.check_classes(np.array([0, 1]))
    with pytest.raises(BadInput, match=r"'3'.*there are: 0, 1, 2"):
        images.check_classes([3])
    partly = Labelled(V, A, [None, *Y[1:]])
    assert partly.numbers([None, 0])[0] == -1
    assert len(partly.of_classes([None])) == 0


def test_duplicates_and_maps_take_numbers(tmp_path: Path) -> None:
    images = Labelled(V, range(60), Y)
    unused = (cast(Any, None), {}, cast(Any, None))  # they only serve to form groups
    found = Duplicates(images, images, [Duplicate(0, 7, 0.0, 1.0, False)], 1, 1, [], *unused)
    [row] = found.rows()
    assert (row["a"], row["b"]) == ("0", "7")
    assert (row["label_a"], row["label_b"]) == (str(Y[0]), str(Y[7]))
    drawn = []
    for labels in (Y, Y.astype(str)):
        draw_map(tmp_path / "map.png", V[:, :2], labels, "map")
        drawn.append((tmp_path / "map.png").read_bytes())
    assert drawn[0] == drawn[1]
    draw_map(tmp_path / "unknown.png", V[:, :2], [math.nan, None, *Y[2:]], "map")


def test_shards_hold_numbers_as_text(tmp_path: Path) -> None:
    made = embeddings(tmp_path / "set", V[:4], labels=[1, 2.0, math.nan, True])  # type: ignore[list-item]
    assert open_embeddings(made.folder).rows()["label"].to_pylist() == ["1", "2", None, "True"]


@pytest.mark.parametrize("ids", [range, np.arange, lambda n: [str(i) for i in range(n)]])
def test_numbers_as_ids_leave_out_no_item_of_another_set(ids: Any) -> None:
    right = evaluate(*TEXT, Metric.EUCLIDEAN)
    queries, database = Labelled(V, ids(60), Y), Labelled(W, ids(90), Z)
    found = evaluate(queries, database, Metric.EUCLIDEAN)
    assert found.means == right.means
    assert (queries.rows_in(database) == -1).all()
    hits = nearest(V, W, Metric.EUCLIDEAN, 20)
    through = evaluate_hits(queries, database, hits, Metric.EUCLIDEAN, (1, 10))
    assert through.precision_at[10] == right.precision_at[10]
    check_apart(queries, database, SourceFacts("a", "a", 60), SourceFacts("b", "b", 90))


@pytest.mark.parametrize("ids", [range(60), A])
def test_a_set_and_its_parts_leave_out_each_query_itself(ids: Any, tmp_path: Path) -> None:
    named, counted = Labelled(V, A, Y), Labelled(V, ids, Y)
    right = evaluate(named, named, Metric.COSINE)
    assert evaluate(counted, counted, Metric.COSINE).means == right.means
    again = Labelled(V.copy(), ids, Y)
    assert evaluate(again, counted, Metric.COSINE).means == right.means
    # Rounded as by another batch, or by float16.
    rounded = Labelled(V.astype(np.float16).astype(np.float32), ids, Y)
    np.testing.assert_array_equal(rounded.rows_in(counted), np.arange(60))
    some = counted.take(np.array([3, 30, 7]))
    np.testing.assert_array_equal(some.rows_in(counted), [3, 30, 7])
    sides = sides_of(Protocol.UNSEEN, counted, TEXT[1], np.zeros(90, bool))
    assert evaluate(sides.queries, sides.database, Metric.COSINE).means == right.means
    with pytest.raises(Mismatch, match="60 images are in both the validation and the test set"):
        check_apart(counted, again, SourceFacts("a", "a", 60), SourceFacts("b", "b", 60))


def test_judgments_leave_out_the_query_itself_and_no_other(tmp_path: Path) -> None:
    #           its own row, by number and vector     another item of the same number
    queries = Labelled([[0.0], [5.0]], [0, 1], ["a", "a"])
    database = Labelled([[0.0], [1.0], [2.0]], [0, 1, 2], ["a", "a", "b"])
    result = evaluate(queries, database, Metric.EUCLIDEAN, (1,))
    write_qrels(tmp_path / "qrels", result, database)
    assert (tmp_path / "qrels").read_text().splitlines() == ["0 0 1 1", "1 0 0 1", "1 0 1 1"]
    assert result.per_query.own.tolist() == [0, -1]


def test_text_names_an_item_in_every_set() -> None:
    queries = Labelled([[0.0], [3.0]], ["cat/7", "new"], ["a", "a"])
    database = Labelled([[9.0], [1.0]], ["cat/7", "other"], ["a", "a"])
    assert queries.rows_in(database).tolist() == [0, -1]


def test_vectors_may_be_lists() -> None:
    made = Labelled(V.tolist(), A, Y)
    assert made.vectors.dtype == np.float32
    assert evaluate(made, TEXT[1], Metric.COSINE).means == evaluate(*TEXT, Metric.COSINE).means
    with pytest.raises(BadInput, match="vectors are not rows of numbers, all of one length"):
        Labelled([[1.0], [2.0, 3.0]], ["a", "b"], [1, 2])


def test_numbered_images_of_two_precisions_are_the_same_images() -> None:
    """Single vectors of integers of 8 bits are further apart than rounding of float32."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 16), np.float32)
    rounded = vectors + np.float32(0.05) * rng.standard_normal((40, 16), np.float32)
    ids, labels = [*range(40)], ["a"] * 40
    database = Labelled(vectors, ids, labels)
    assert Labelled(rounded, ids, labels).rows_in(database).tolist() == ids
    others = Labelled(rng.permutation(rounded), ids, labels)
    assert (others.rows_in(database) == -1).sum() > 30
    few = Labelled(rounded[:5], ids[:5], labels[:5])
    assert (few.rows_in(database) == -1).all(), "too few to tell"

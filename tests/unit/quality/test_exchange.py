"""Evaluations as files: what is written is what was measured, and is read again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.contracts import Metric
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.quality.evaluation import Evaluation, evaluate
from retrieval.quality.exchange import (
    QueryTable,
    compare_evaluations,
    read_queries,
    write_qrels,
    write_queries,
    write_run,
)
from retrieval.quality.labelled import Labelled
from retrieval.quality.significance import permutation_test


def items(count: int, prefix: str, seed: int, spread: float = 1.0) -> Labelled:
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=count)
    vectors = np.eye(3)[labels] + generator.normal(0, spread, (count, 3))
    return Labelled(
        vectors.astype(np.float32),
        [f"{prefix} {i}%" for i in range(count)],
        [f"class {label}" for label in labels],
    )


DATABASE, QUERIES = items(50, "d", 1), items(20, "q", 2)
FOUND = evaluate(QUERIES, DATABASE, Metric.EUCLIDEAN, (1, 5), depth=7)


def test_queries_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "queries.parquet"
    write_queries(file, FOUND, {"metric": "euclidean"})
    read = read_queries(file)
    assert (read.ids, read.columns) == (FOUND.per_query.ids, FOUND.per_query.columns)
    assert np.array_equal(read.values, FOUND.per_query.values)
    assert read.facts["metric"] == "euclidean"
    assert pq.read_table(file)["label"].to_pylist() == FOUND.per_query.labels


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not found; write it with 'retr eval --save"):
        read_queries(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(BadData, match="cannot read"):
        read_queries(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "table.parquet")
    with pytest.raises(BadData, match="is not of the format retr-queries"):
        read_queries(tmp_path / "table.parquet")


def kept(evaluation: Evaluation, folder: Path) -> QueryTable:
    write_queries(folder / "q.parquet", evaluation, {})
    return read_queries(folder / "q.parquet")


def test_two_evaluations_are_compared_over_the_queries_of_both(tmp_path: Path) -> None:
    worse = Labelled(items(20, "q", 2, 3.0).vectors, QUERIES.ids, QUERIES.labels)
    others = worse.take(np.arange(19, 4, -1))  # in another order, and not the first five
    there = evaluate(others, DATABASE, Metric.EUCLIDEAN, (1, 10))
    found = compare_evaluations(FOUND, kept(there, tmp_path), None)
    # k = 5 is not in one, k = 10 not in the other.
    assert list(found) == [
        "map", "r_precision", "mrr", "knn_accuracy",
        "map_at_1", "precision_at_1", "recall_at_1", "ndcg_at_1",
    ]  # fmt: skip
    here = FOUND.per_query.values[5:, 0]
    of_map = found["map"]
    assert of_map.here == pytest.approx(here.mean())
    assert of_map.there == pytest.approx(there.means["map"])
    differences = here - there.per_query.values[::-1, 0]
    assert of_map.p == permutation_test(differences)
    assert of_map.interval[0] < differences.mean() < of_map.interval[1]
    assert of_map.to_json()["difference"] == pytest.approx(differences.mean())


def test_evaluations_without_a_common_query_are_refused(tmp_path: Path) -> None:
    other = evaluate(items(9, "x", 2), DATABASE, Metric.EUCLIDEAN, (1,))
    with pytest.raises(Mismatch, match="no query is in both"):
        compare_evaluations(FOUND, kept(other, tmp_path), None)
    with pytest.raises(Mismatch, match="has protocol none, and this one unseen"):
        compare_evaluations(FOUND, kept(FOUND, tmp_path), "unseen")


def test_a_run_has_the_rankings_and_judgments_what_is_relevant(tmp_path: Path) -> None:
    run, qrels = tmp_path / "new" / "run.txt", tmp_path / "qrels.txt"
    write_run(run, FOUND, DATABASE, "my encoder")
    write_qrels(qrels, FOUND, DATABASE)
    lines = [line.split(" ") for line in run.read_text().splitlines()]
    assert len(lines) == 20 * 7
    assert lines[0][:2] == ["q%200%25", "Q0"]
    assert lines[0][3:] == ["1", "7", "my%20encoder"]
    relevant = {tuple(line.split(" ")[::2]) for line in qrels.read_text().splitlines()}
    of_each = [list(DATABASE.labels).count(label) for label in FOUND.per_query.labels]
    assert len(relevant) == sum(of_each)
    # Precision at 5 again, by these files alone.
    hits = [(asked, item) in relevant for asked, _, item, rank, *_ in lines if int(rank) <= 5]
    assert np.mean(hits) == pytest.approx(FOUND.precision_at[5])


def test_a_query_is_not_relevant_to_itself(tmp_path: Path) -> None:
    found = evaluate(DATABASE, DATABASE, Metric.EUCLIDEAN, (1,))
    write_qrels(tmp_path / "qrels.txt", found, DATABASE)
    for line in (tmp_path / "qrels.txt").read_text().splitlines():
        asked, _, item, _ = line.split(" ")
        assert asked != item

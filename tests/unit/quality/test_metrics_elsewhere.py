"""The measures as others compute them: trec_eval and ranx from the files, pytorch-metric-learning.

scikit-learn's are in test_metrics.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from retrieval.contracts import Metric
from retrieval.quality.evaluation import evaluate
from retrieval.quality.exchange import write_qrels, write_run
from retrieval.quality.labelled import Labelled


def items(count: int, prefix: str, seed: int, steps: int) -> Labelled:
    """Five overlapping classes; with few steps, many distances are equal."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(5, size=count)
    vectors = np.eye(5)[labels] + generator.normal(0, 0.8, (count, 5))
    vectors = np.round(vectors * steps) / steps
    ids = [f"{prefix} {i}" for i in range(count)]
    return Labelled(vectors.astype(np.float32), ids, [str(label) for label in labels])


def test_trec_eval_finds_the_same_in_the_files(tmp_path: Path) -> None:
    queries, database = items(40, "q", 1, 2), items(200, "d", 2, 2)
    found = evaluate(queries, database, Metric.EUCLIDEAN, (10, 200), depth=200)
    write_run(tmp_path / "run.txt", found, database, "retr")
    write_qrels(tmp_path / "qrels.txt", found, database)
    with (tmp_path / "qrels.txt").open() as judged, (tmp_path / "run.txt").open() as run:
        evaluator = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(judged),
            {"P", "recall", "map", "map_cut", "ndcg_cut", "Rprec", "recip_rank"},
        )
        theirs = evaluator.evaluate(pytrec_eval.parse_run(run))
    names = {
        "P_10": "precision_at_10",
        "recall_10": "recall_at_10",
        "map": "map",
        "ndcg_cut_10": "ndcg_at_10",
        "ndcg_cut_200": "ndcg_at_200",
        "Rprec": "r_precision",
        "recip_rank": "mrr",
    }
    of = found.per_query
    assert theirs.keys() == {name.replace(" ", "%20") for name in of.ids}
    for name, values in zip(of.ids, of.values, strict=True):
        measured = dict(zip(of.columns, values.tolist(), strict=True))
        of_query = theirs[name.replace(" ", "%20")]
        for there, here in names.items():
            assert of_query[there] == pytest.approx(measured[here], abs=1e-9)
        # map_cut divides by R where retr divides by min(R, k).
        relevant = list(database.labels).count(of.labels[of.ids.index(name)])
        assert of_query["map_cut_10"] * relevant / 10 == pytest.approx(measured["map_at_10"])


RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
qrels, run = (kind.from_file(file, kind="trec") for kind, file in zip((Qrels, Run), sys.argv[1:3]))
print(json.dumps({name: float(value) for name, value in
                  evaluate(qrels, run, json.loads(sys.argv[3])).items()}))
"""  # it warns, and sets numba's threads


@pytest.mark.slow
def test_ranx_finds_the_same_in_the_files(tmp_path: Path) -> None:
    queries, database = items(40, "q", 1, 2), items(200, "d", 2, 2)
    found = evaluate(queries, database, Metric.EUCLIDEAN, (10, 200), depth=200)
    files = tmp_path / "qrels.txt", tmp_path / "run.txt"
    write_qrels(files[0], found, database)
    write_run(files[1], found, database, "retr")
    names = {
        "precision@10": "precision_at_10",
        "recall@10": "recall_at_10",
        "map": "map",
        "ndcg@10": "ndcg_at_10",
        "r-precision": "r_precision",
        "mrr": "mrr",
    }
    code = [sys.executable, "-c", RANX, *files, json.dumps([*names])]
    finished = subprocess.run(code, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    theirs = json.loads(finished.stdout)
    for there, here in names.items():
        assert theirs[there] == pytest.approx(found.means[here], abs=1e-9)


IN_A_PROCESS_OF_ITS_OWN = """
import json, sys
import numpy as np
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
given = np.load(sys.argv[1])
names = json.loads(sys.argv[2])
calculator = AccuracyCalculator(include=names, k=len(given["d"]))
found = calculator.get_accuracy(given["q"], given["q_labels"], given["d"], given["d_labels"])
print(json.dumps({name: float(found[name]) for name in names}))
"""  # it changes faiss for the whole process


@pytest.mark.slow
def test_pytorch_metric_learning_finds_the_same(tmp_path: Path) -> None:
    queries, database = items(40, "q", 1, 10**6), items(200, "d", 2, 10**6)
    found = evaluate(queries, database, Metric.EUCLIDEAN, (1,))
    names = {
        "precision_at_1": "precision_at_1",
        "r_precision": "r_precision",
        "mean_average_precision": "map",
        "mean_reciprocal_rank": "mrr",
    }
    np.savez(
        tmp_path / "given.npz",
        q=queries.vectors,
        d=database.vectors,
        q_labels=np.array(queries.labels, int),
        d_labels=np.array(database.labels, int),
    )
    code = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, tmp_path / "given.npz"]
    finished = subprocess.run([*code, json.dumps([*names])], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    theirs = json.loads(finished.stdout)
    for there, here in names.items():
        assert theirs[there] == pytest.approx(found.means[here], abs=1e-5)

"""`--threads`: it limits all libraries, and results do not depend on it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.runtime.threads import available_cores, usable_cores
from retrieval.storage.sets.embeddings import open_embeddings
from tests.cli.gallery import Gallery
from tests.cli.running import Retr

pytestmark = pytest.mark.usefixtures("launched")

MOST_THREADS = 16  # some libraries are built for at most 64 threads

POOLS = """
import json, sys
from cli.main import run
run()
import faiss, torch
from threadpoolctl import threadpool_info
from retrieval.runtime.threads import usable_cores
pools = [pool["num_threads"] for pool in threadpool_info()]
print(json.dumps([usable_cores(), torch.get_num_threads(), faiss.omp_get_max_threads(), *pools]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", sorted({1, min(available_cores(), MOST_THREADS)}))
def test_threads_limits_every_library(tmp_path: Path, threads: int) -> None:
    command = ["encode", "digits", "--limit", "3", "--encoder", "siamese-quick", "--quiet"]
    options = ["--threads", str(threads), "--out", str(tmp_path / "out")]
    finished = subprocess.run(
        [sys.executable, "-c", POOLS, *command, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    pools = json.loads(finished.stdout)
    assert len(pools) > 4, "no library's pool was seen"
    assert pools == [threads] * len(pools)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, retr: Retr, gallery: Gallery
) -> None:
    for threads in ("1", str(available_cores())):
        place = tmp_path / threads
        retr(
            *("encode", "digits", "--limit", "100", "--encoder", "siamese-quick"),
            *("--threads", threads, "--out", place / "embeddings"),
        )
        for backend in ("exact", "ivf"):
            retr(
                *("index", tmp_path / "1" / "embeddings", "--backend", backend),
                *("--threads", threads, "--out", place / backend),
            )
    one, all_cores = (tmp_path / threads for threads in ("1", str(available_cores())))
    vectors = [open_embeddings(place / "embeddings").vectors() for place in (one, all_cores)]
    # On some processors, torch's order of summation depends on the number of threads.
    np.testing.assert_allclose(*vectors, rtol=0, atol=2e-6)
    for backend in ("exact", "ivf"):
        index = f"{backend}/index.faiss"
        assert (one / index).read_bytes() == (all_cores / index).read_bytes()
    answers = [
        retr.json("search", gallery.image, "--index", gallery.index("hnsw"), "--threads", threads)
        for threads in ("1", str(available_cores()))
    ]
    assert answers[0] == answers[1]


def test_more_threads_than_cores_are_refused(retr: Retr, gallery: Gallery) -> None:
    cores = available_cores()
    for wrong in (cores + 1, 0):
        threads = ("--threads", str(wrong))
        message = retr.refused("search", gallery.image, "--index", gallery.index(), *threads)
        assert f"--threads {wrong} on {cores} cores; give 1 to {cores}" in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", 1), ("1,1", 1), ("", None), ("0", None), ("many", None), ("4096", None)],
)
def test_omp_num_threads_limits_cores_too(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert usable_cores() == (expected or available_cores())

"""Full disks, unreadable disks, and concurrent writers."""

import errno
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_kills import CASES, content

from retrieval import build_index, open_embeddings, open_index
from retrieval.errors import BadInput, Busy
from retrieval.images import open_source
from tests.faults import victims
from tests.forking import forking

# The largest file, in bytes, that a process may write: a nearly full disk.
FILE_LIMIT_BYTES = (0, 100, 1000, 3000, 8000, 20_000)


def limited(victim: victims.Victim, folder: Path, limit: int, error_number: Any) -> None:
    """Run the victim with files of at most `limit` bytes; note the error's number, 0 for none."""
    sys.dont_write_bytecode = True  # Python does not notice that it wrote half of a .pyc file
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        victim(folder)
    except OSError as error:
        error_number.value = error.errno or -1
    except Exception as error:
        # Some libraries raise errors of their own.
        full = "disk" in str(error) or "large" in str(error).lower()
        error_number.value = errno.EFBIG if full else -2


@pytest.mark.parametrize("name", ["encode", "index", "index-again", "parts", "add", "train"])
def test_a_full_disk_keeps_the_earlier_result_and_the_next_run_completes(
    name: str, tmp_path: Path
) -> None:
    prepare, victim = CASES[name]
    prepare(tmp_path / "prepared")
    before = content(tmp_path / "prepared" / "out")
    shutil.copytree(tmp_path / "prepared", tmp_path / "work")  # files hold paths in this folder
    victims.run(victim, tmp_path / "work")
    whole = content(tmp_path / "work" / "out")
    context = forking()
    failed = 0
    sizes = (
        (1000, 8000) if name == "train" and not victims.ALL else FILE_LIMIT_BYTES
    )  # a training is slow
    for limit in sizes:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        shutil.copytree(tmp_path / "prepared", tmp_path / "work")
        number = context.Value("i", 0)
        arguments = (victim, tmp_path / "work", limit, number)
        process = context.Process(target=limited, args=arguments)
        process.start()
        process.join(victims.TIMEOUT_SECONDS)
        assert process.exitcode == 0
        assert number.value in (0, errno.EFBIG, errno.ENOSPC), f"{limit} bytes: {number.value}"
        failed += number.value != 0
        out = tmp_path / "work" / "out"
        if number.value and before:
            assert content(out) == before
        victims.run(victim, tmp_path / "work")
        assert content(out) == whole
    assert failed >= len(sizes) // 2


def test_a_read_error_is_reported_and_keeps_the_earlier_index(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoders.toy import Toy
    from retrieval.embedding.encode import encode_source

    encode_source(open_source(str(photos)), Toy(), tmp_path / "out", shard_images=7)
    before = build_index([open_embeddings(tmp_path / "out")], "exact", tmp_path / "index")
    original = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "part-00002.parquet":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(BadInput, match=r"part-00002.parquet.*Input/output error"):
        open_embeddings(tmp_path / "out").read()
    with pytest.raises(BadInput, match="Input/output error"):
        build_index([open_embeddings(tmp_path / "out")], "hnsw", tmp_path / "index")
    assert open_index(tmp_path / "index").facts == before


@pytest.mark.parametrize("name", ["encode", "index", "add"])
def test_concurrent_writers_are_refused_or_find_the_result_complete(
    name: str, tmp_path: Path
) -> None:
    prepare, victim = CASES[name]
    prepare(tmp_path / "prepared")
    shutil.copytree(tmp_path / "prepared", tmp_path / "work")
    victims.run(victim, tmp_path / "work")
    whole = content(tmp_path / "work" / "out")
    shutil.rmtree(tmp_path / "work")
    shutil.copytree(tmp_path / "prepared", tmp_path / "work")
    context = forking()
    start = context.Event()
    outcomes = [context.Value("i", -1) for _ in range(3)]
    processes = [
        context.Process(target=racing, args=(victim, tmp_path / "work", start, outcome))
        for outcome in outcomes
    ]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(victims.TIMEOUT_SECONDS)
    assert sorted({outcome.value for outcome in outcomes} | {1, 2}) == [1, 2]
    assert 1 in {outcome.value for outcome in outcomes}
    assert content(tmp_path / "work" / "out") == whole


def racing(victim: Callable[[Path], None], folder: Path, start: Any, outcome: Any) -> None:
    """Run the victim once `start` is set; the outcome is 1 for done, 2 for refused."""
    start.wait()
    try:
        victim(folder)
        outcome.value = 1
    except Busy:
        outcome.value = 2


def test_add_appends_the_rows_of_the_second_set(tmp_path: Path) -> None:
    """The result that runs after a fault are compared with is right."""
    prepare, victim = CASES["add"]
    prepare(tmp_path)
    victim(tmp_path)
    opened = open_index(tmp_path / "out")
    vectors = open_embeddings(tmp_path / "second").vectors()
    assert np.array_equal(opened.index.search(vectors, 1).rows[:, 0], np.arange(400, 600))

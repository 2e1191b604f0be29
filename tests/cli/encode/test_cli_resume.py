"""Killed runs: the same command again gives the files of an uninterrupted run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from retrieval import open_embeddings, open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadInput, BadSource, Busy
from retrieval.images import Item
from retrieval.storage.files import locked, sealed
from tests.cli import slow_encode
from tests.cli.pictures import BAD, picture, png, save_parquet
from tests.cli.running import CONSOLE_SCRIPT, Retr, snapshot

pytestmark = pytest.mark.usefixtures("launched")

IMAGES = 620
SHARDS = 13  # 12 shards of 50 images and one of 20
PATIENCE = 60  # seconds to wait for something that should happen immediately


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Parquet file of 620 images, 21 of them bad."""
    contents = [png(picture(seed)) for seed in range(IMAGES)]
    bad = [content() for name, (content, _) in BAD.items() if name != "vast.png"]
    for number, row in enumerate(range(7, IMAGES, 30)):
        contents[row] = bad[number % len(bad)]
    path = tmp_path_factory.mktemp("source") / "images.parquet"
    save_parquet(path, contents, [f"label {seed % 7}" for seed in range(IMAGES)])
    return path


@pytest.fixture(scope="module")
def uninterrupted(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the embeddings of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "made"
    slow_encode.encode(file, folder)
    made = open_embeddings(folder).manifest
    assert (made.rows, made.skipped, len(made.shards)) == (IMAGES - 21, 21, SHARDS)
    return folder


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Return all files with their bytes, without the lock."""
    return {name: content for name, content in snapshot(folder).items() if name != ".lock"}


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def slow_run(file: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield an encode in another process, which is killed at the end."""
    script = str(Path(slow_encode.__file__))
    with subprocess.Popen([sys.executable, script, file, folder, "0.05"]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_killed_run_is_resumed(retr: Retr, file: Path, uninterrupted: Path, shards: int) -> None:
    folder = retr.cwd / "made"
    with slow_run(file, folder) as process:
        wait_until((folder / f"part-{shards - 1:05}.parquet").exists)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = files_of(folder)
    assert f"part-{SHARDS - 1:05}.parquet" not in left
    if shards == 3:
        message = retr.refused("index", folder, "--out", "index")
        assert f"of {IMAGES} images" in message
        assert "retr encode" in message
        assert not (retr.cwd / "index").exists()
    stood = {name: (folder / name).stat().st_ino for name in left if name.startswith("part-")}
    # The run may have been killed before the first manifest.
    manifest = json.loads(left.get("manifest.json") or b'{"shards": []}')
    listed = [shard["file"] for shard in manifest["shards"]]
    assert len(listed) >= shards - 1
    slow_encode.encode(file, folder)
    assert files_of(folder) == files_of(uninterrupted)
    # Finished shards are kept, not encoded again.
    for name in listed:
        assert (folder / name).stat().st_ino == stood[name]


@pytest.mark.parametrize("shards", [0, 1, 5, SHARDS])
def test_run_killed_between_two_files_is_resumed(
    tmp_path: Path, file: Path, uninterrupted: Path, shards: int
) -> None:
    """A shard is on disk and in skipped.parquet, but not in the manifest yet."""
    folder = tmp_path / "made"
    shutil.copytree(uninterrupted, folder)
    for number in range(shards + 1, SHARDS):
        (folder / f"part-{number:05}.parquet").unlink()
    skipped = pq.read_table(folder / "skipped.parquet")
    shown = skipped.filter([shard <= shards for shard in skipped["shard"].to_pylist()])
    pq.write_table(shown, folder / "skipped.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["complete"] = False
    manifest["shards"] = manifest["shards"][:shards]
    for count in ("rows", "skipped"):
        manifest[count] = sum(shard[count] for shard in manifest["shards"])
    if shards:
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    else:
        (folder / "manifest.json").unlink()
    for name in (f"part-{shards:05}.parquet", "manifest.json", "skipped.parquet"):
        (folder / f"{name}.partial").write_bytes(b"half of it")
    slow_encode.encode(file, folder)
    left = files_of(folder)
    # A run without new shards has no reason to write these files.
    for name in [name for name in left if name.endswith(".partial")]:
        del left[name]
    assert left == files_of(uninterrupted)


@pytest.mark.parametrize("number", [0, 6, SHARDS - 1])
def test_damaged_shard_of_a_complete_set_is_encoded_again(
    tmp_path: Path, file: Path, uninterrupted: Path, number: int
) -> None:
    folder = tmp_path / "made"
    shutil.copytree(uninterrupted, folder)
    part = folder / f"part-{number:05}.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    slow_encode.encode(file, folder)
    assert files_of(folder) == files_of(uninterrupted)


def test_second_writer_is_refused_and_the_first_continues(
    retr: Retr, file: Path, uninterrupted: Path
) -> None:
    folder = retr.cwd / "made"
    with slow_run(file, folder) as process:
        wait_until((folder / "part-00000.parquet").exists)
        process.send_signal(signal.SIGSTOP)  # it must not end before the others begin
        with pytest.raises(Busy, match="another process is writing into"):
            slow_encode.encode(file, folder)
        outcome = retr.run("encode", file, "--encoder", "toy", "--out", folder)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("error: another process is writing into")
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE) == 0
    assert files_of(folder) == files_of(uninterrupted)


def test_killed_writer_releases_the_lock(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "made"
    with slow_run(file, folder) as process:
        wait_until((folder / "part-00000.parquet").exists)
        process.kill()
        process.wait()
    with locked(folder):
        pass


def test_keyboard_interrupt_ends_silently(retr: Retr, file: Path) -> None:
    source = retr.cwd / "images"
    source.mkdir()
    content = png(np.zeros((400, 400, 3), np.uint8))  # slow to decode: about 2 s for all images
    for number in range(1000):
        (source / f"{number}.png").write_bytes(content)
    command = ["encode", "images", "--encoder", "toy", "--out", "made"]
    with subprocess.Popen(
        [CONSOLE_SCRIPT, *command],
        cwd=retr.cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Processes that a shell starts in the background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_until((retr.cwd / "made" / ".lock").exists)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert retr.json(*command)["rows"] == 1000


class Vanishing:
    """A source whose last images vanish after they were counted."""

    name = "vanishing"
    fingerprint = "0" * 64

    def __len__(self) -> int:
        return 30

    def items(self, start: int = 0) -> Iterator[Item]:
        """Twelve of the thirty; who asks for more and more of what is not there is stopped."""
        return iter(_Ending([Item(str(i), None, str(i), picture(i)) for i in range(start, 12)]))


class _Ending:
    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.asked_in_vain = 0

    def __iter__(self) -> "_Ending":
        return self

    def __next__(self) -> Item:
        if self.items:
            return self.items.pop(0)
        self.asked_in_vain += 1
        if self.asked_in_vain > 100:
            raise AssertionError("asked for items without end")
        raise StopIteration


def test_source_that_shrinks_during_the_run_ends_it(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="12 of 30"):
        encode_source(Vanishing(), open_encoder("toy"), tmp_path / "made", shard_images=10)
    with suppress(BadInput):
        open_embeddings(tmp_path / "made")
        pytest.fail("a set that lacks images says that it is complete")

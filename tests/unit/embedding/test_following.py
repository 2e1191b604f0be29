"""Embeddings follow a folder that changes: only new and changed files are encoded."""

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoders.toy import Toy
from retrieval.contracts import Images, Vectors
from retrieval.embedding.encode import Outcome, bring_up_to_date
from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Manifest
from retrieval.storage.sets.shard_writer import MAX_SMALL_SHARDS, UPDATE

SHARD_IMAGES = 8


class Counting(Toy):
    """The toy encoder, which counts the images it gets, and fails after some batches."""

    def __init__(self, batches: int = 1000) -> None:
        super().__init__()
        self.images = 0
        self.batches = batches

    def encode(self, images: Images) -> Vectors:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        self.images += len(images)
        return super().encode(images)


def save(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(30):
        save(tmp_path / "p" / f"{i % 3}" / f"{i:02}.png", i)
    return tmp_path / "p"


@pytest.fixture
def update(folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def run(encoder: Toy | None = None, check_content: bool = False) -> Outcome:
        return bring_up_to_date(
            open_source(str(folder)),
            encoder or Counting(),
            tmp_path / "e",
            shard_images=SHARD_IMAGES,
            check_content=check_content,
        )

    return run


def rows(embeddings: Path) -> list[tuple[object, ...]]:
    """Return all rows in the order of their ids, with everything that a row holds."""
    table = open_embeddings(embeddings)
    found = [
        tuple(tuple(value) if isinstance(value, list) else value for value in row.values())
        for each in table.tables()
        for row in each.to_pylist()
    ]
    return sorted(found, key=str)


def check_fresh(folder: Path, tmp_path: Path) -> None:
    """Check that the embeddings are those of a fresh run, and that the folder is whole."""
    fresh = tmp_path / f"fresh{len(list(tmp_path.iterdir()))}"
    source = open_source(str(folder))
    bring_up_to_date(source, Toy(), fresh, shard_images=SHARD_IMAGES)
    assert rows(tmp_path / "e") == rows(fresh)
    assert verify(tmp_path / "e").problems == ()
    assert Manifest.read(tmp_path / "e").skipped == Manifest.read(fresh).skipped


def counts(outcome: Outcome) -> tuple[int, int, int, int]:
    return outcome.encoded, outcome.kept, outcome.removed, outcome.renamed


def test_one_added_removed_renamed_and_changed(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    assert counts(update()) == (30, 0, 0, 0)
    save(folder / "new.png", 100)
    (folder / "0" / "03.png").unlink()
    (folder / "1" / "04.png").rename(folder / "2" / "zz.png")
    save(folder / "2" / "05.png", 200)
    encoder = Counting()
    assert counts(update(encoder)) == (2, 27, 1, 1)
    assert encoder.images == 2
    check_fresh(folder, tmp_path)
    assert counts(update(encoder)) == (0, 30, 0, 0)
    assert encoder.images == 2


def test_touched_files_keep_their_embeddings_and_get_their_new_time(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    assert counts(update()) == (0, 30, 0, 0)
    check_fresh(folder, tmp_path)
    before = sorted((tmp_path / "e").glob("part-*"))
    assert counts(update()) == (0, 30, 0, 0)
    assert sorted((tmp_path / "e").glob("part-*")) == before


def test_a_folder_that_was_renamed_is_not_encoded_again(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    (folder / "0").rename(folder / "other")
    assert counts(update()) == (0, 20, 0, 10)
    check_fresh(folder, tmp_path)


def test_files_that_swapped_their_names(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    a, b = folder / "0" / "00.png", folder / "1" / "01.png"
    a.rename(folder / "x.png")
    b.rename(a)
    (folder / "x.png").rename(b)
    assert counts(update()) == (0, 28, 0, 2)
    check_fresh(folder, tmp_path)


def test_a_change_of_equal_size_and_time_is_found_by_content_only(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    path = folder / "0" / "00.bmp"
    save(path, 1)
    update()
    status = path.stat()
    save(path, 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert counts(update()) == (0, 31, 0, 0)
    assert counts(update(check_content=True)) == (1, 30, 0, 0)
    check_fresh(folder, tmp_path)
    assert counts(update(check_content=True)) == (0, 31, 0, 0)


def test_images_that_cannot_be_read_are_tried_again_when_something_changed(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    for name in ("0/00.png", "1/01.png"):
        (folder / name).write_bytes(b"")
    assert update().manifest.skipped == 2
    save(folder / "0" / "00.png", 300)
    outcome = update()
    assert counts(outcome) == (1, 28, 0, 0)
    assert outcome.manifest.skipped == 1
    check_fresh(folder, tmp_path)
    (folder / "1" / "01.png").unlink()
    assert update().manifest.skipped == 0
    check_fresh(folder, tmp_path)


def test_no_file_holds_rows_of_images_that_are_gone(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").glob("part-*")}
    (folder / "0" / "03.png").unlink()
    save(folder / "2" / "05.png", 200)
    update()
    files = [pq.read_table(path)["id"].to_pylist() for path in (tmp_path / "e").glob("part-*")]
    assert sorted(chain(*files)) == sorted(row[0] for row in rows(tmp_path / "e"))
    kept = [name for name in before if (tmp_path / "e" / name).exists()]
    assert len(kept) == 2  # of four shards, those without changes
    assert all((tmp_path / "e" / name).read_bytes() == before[name] for name in kept)


def test_many_small_shards_are_joined(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    for i in range(20):
        save(folder / "one by one" / f"{i}.png", 100 + i)
        manifest = update().manifest
        assert len(manifest.shards) <= MAX_SMALL_SHARDS + 2 * -(-manifest.rows // SHARD_IMAGES)
    check_fresh(folder, tmp_path)


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_killed_update_leaves_the_old_set_and_goes_on(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome], batches: int
) -> None:
    update()
    before = rows(tmp_path / "e")
    for i in range(24):
        save(folder / "more" / f"{i}.png", 100 + i)
    (folder / "1" / "01.png").rename(folder / "1" / "renamed.png")
    with pytest.raises(KeyboardInterrupt):
        update(Counting(batches))
    assert rows(tmp_path / "e") == before
    assert verify(tmp_path / "e").problems == ()
    (folder / "more" / "0.png").unlink()  # it goes on changing
    save(folder / "0" / "00.png", 500)
    encoder = Counting()
    update(encoder)
    # One image changed, and a stretch may hold the renamed one.
    assert encoder.images <= 24 + 2 - SHARD_IMAGES * batches
    check_fresh(folder, tmp_path)
    assert not (tmp_path / "e" / UPDATE).exists()


def test_a_folder_below_that_cannot_be_listed_keeps_its_rows(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval.images.folders import folder as module

    update()
    (folder / "0" / "00.png").unlink()
    scan = module.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "1":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(module, "scandir", refusing)
    assert counts(update()) == (0, 29, 1, 0)
    monkeypatch.undo()
    assert counts(update()) == (0, 29, 0, 0)
    check_fresh(folder, tmp_path)


def test_other_runs_are_still_refused(
    folder: Path, tmp_path: Path, update: Callable[..., Outcome]
) -> None:
    update()
    save(folder / "new.png", 1)
    with pytest.raises(BadInput, match=r"of all of .*, not only the first images; name another"):
        bring_up_to_date(
            open_source(str(folder), limit=5), Toy(), tmp_path / "e", shard_images=SHARD_IMAGES
        )
    with pytest.raises(BadInput, match=r"as float32, not float16"):
        bring_up_to_date(
            open_source(str(folder)),
            Toy(),
            tmp_path / "e",
            dtype="float16",
            shard_images=SHARD_IMAGES,
        )

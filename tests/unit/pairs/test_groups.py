"""Groups of duplicates: every member is near-identical to the kept image."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval.contracts import Metric
from retrieval.pairs.duplicates import find_duplicates
from retrieval.pairs.groups import Groups, Keep, find_groups, stars
from retrieval.pairs.likeness import AS_IT_IS, TURNS, Turn
from retrieval.quality.labelled import Labelled
from retrieval.storage.names import storable

Edges = set[tuple[int, int]]


@st.composite
def similar(draw: st.DrawFn) -> tuple[list[int], Edges, Edges]:
    """Return images in the order of preference, their similar pairs, and those that are known."""
    count = draw(st.integers(1, 12))
    ranked = draw(st.permutations(range(count)))
    pairs = [(a, b) for a in range(count) for b in range(a)]
    alike = {pair for pair in pairs if draw(st.booleans())}
    known = {pair for pair in sorted(alike) if draw(st.booleans())}
    return ranked, alike, known


def neighbors(pairs: Edges) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for a, b in pairs:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return found


@given(similar())
def test_members_are_near_identical_to_the_kept_image(
    drawn: tuple[list[int], Edges, Edges],
) -> None:
    ranked, alike, known = drawn
    truth = neighbors(alike)
    groups = stars(
        ranked,
        neighbors(known),
        lambda kept, others: [other for other in others if other in truth.get(kept, ())],
    )
    place = {image: i for i, image in enumerate(ranked)}
    assert sorted(image for kept, joined in groups for image in (kept, *joined)) == sorted(ranked)
    for kept, joined in groups:
        assert {*joined} <= truth.get(kept, set())
        assert all(place[kept] < place[image] for image in joined)
    kept_images = [kept for kept, _ in groups]
    linked = neighbors(known)
    for kept in kept_images:  # the rest of a known pair was not left out
        assert not linked.get(kept, set()) & {*kept_images}


def test_a_chain_is_split() -> None:
    """0 ~ 1 ~ 2 ~ 3, but the ends of the chain differ: 2 and 3 are a group of their own."""
    links = {0: {1}, 1: {0, 2}, 2: {1, 3}, 3: {2}}
    asked = []

    def alike(kept: int, others: object) -> list[int]:
        asked.append((kept, others))
        return []

    assert stars([0, 1, 2, 3], links, alike) == [(0, [1]), (2, [3])]
    assert asked == [(0, [2, 3])]
    assert stars([1, 0, 2, 3], links, lambda kept, others: others) == [(1, [0, 2, 3])]


def scene(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def labelled(folder: Path, names: list[str]) -> Labelled:
    """Return images with embeddings that tell nothing about them."""
    vectors = np.random.default_rng(0).normal(size=(len(names), 4)).astype(np.float32)
    paths = [storable(str(folder / name)) for name in names]
    from pyarrow import chunked_array

    return Labelled(vectors, names, [None] * len(names), chunked_array([paths]))


def groups_of(
    folder: Path, names: list[str], keep: Keep, turns: tuple[Turn, ...] = TURNS
) -> Groups:
    found = find_duplicates(labelled(folder, names), None, Metric.COSINE, neighbors=1, turns=turns)
    return find_groups(found, keep)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, list[str]]:
    """Four copies of a scene: large, old by EXIF, new and first by name; and another scene."""
    exif = Image.Exif()
    exif[0x0132] = "2001:02:03 04:05:06"
    scene(1, (160, 120)).save(tmp_path / "10.jpg", quality=95)
    scene(1).save(tmp_path / "9.jpg", quality=95, exif=exif)
    scene(1).save(tmp_path / "a.png")
    scene(1).save(tmp_path / "b.jpg", quality=95)
    scene(2).save(tmp_path / "other.png")
    import os

    for i, name in enumerate(("10.jpg", "9.jpg", "a.png", "b.jpg")):
        os.utime(tmp_path / name, (1_500_000_000 + i, 1_500_000_000 + i))
    return tmp_path, ["10.jpg", "9.jpg", "a.png", "b.jpg", "other.png"]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep.LARGEST, "10.jpg"),
        (Keep.OLDEST, "9.jpg"),  # its EXIF date is older than the files
        (Keep.NEWEST, "b.jpg"),
        (Keep.FIRST, "9.jpg"),  # 9 before 10
    ],
)
def test_keep_chooses(photos: tuple[Path, list[str]], keep: Keep, kept: str) -> None:
    (group,) = groups_of(*photos, keep).groups
    assert group.keep.id == kept
    assert {image.id for image in group.remove} == {*photos[1][:4]} - {kept}


def test_ties_are_decided_by_date_then_format(photos: tuple[Path, list[str]]) -> None:
    import os

    folder, _ = photos
    (group,) = groups_of(folder, ["b.jpg", "a.png"], Keep.LARGEST).groups
    assert group.keep.id == "a.png", "it is a second older"
    for name in ("a.png", "b.jpg"):
        os.utime(folder / name, (1_500_000_000, 1_500_000_000))
    (group,) = groups_of(folder, ["b.jpg", "a.png"], Keep.LARGEST).groups
    assert group.keep.id == "a.png", "PNG has no loss"
    scene(1).save(folder / "c.png")
    os.utime(folder / "c.png", (1_500_000_000, 1_500_000_000))
    (group,) = groups_of(folder, ["c.png", "a.png"], Keep.LARGEST).groups
    assert group.keep.id == "a.png", "the first id"


@pytest.mark.parametrize("turn", TURNS)
def test_turned_copies_are_found_by_their_pixels(tmp_path: Path, turn: Turn) -> None:
    """The embeddings are random, so that thumbnails alone propose the pair."""
    image = scene(3, (96, 64))
    image.resize((192, 128), Image.Resampling.BICUBIC).save(tmp_path / "0.png")
    if turn.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.rotate(-turn.rotated, expand=True).save(tmp_path / "1.jpg", quality=90)  # clockwise
    names = ["0.png", "1.jpg"]
    for seed in range(4, 30):
        scene(seed, (96, 64)).save(tmp_path / f"{seed}.png")
        names.append(f"{seed}.png")
    (group,) = groups_of(tmp_path, names, Keep.LARGEST).groups
    assert (group.keep.id, group.remove[0].id) == ("0.png", "1.jpg")
    assert group.remove[0].match.turn == turn
    (reverse,) = groups_of(tmp_path, names[::-1], Keep.LARGEST).groups
    assert reverse.remove[0].match.turn == turn, "as seen from the kept image"
    as_is = groups_of(tmp_path, names, Keep.LARGEST, (AS_IT_IS,)).groups
    assert len(as_is) == (turn == AS_IT_IS)


def test_a_missing_image_is_in_no_group(photos: tuple[Path, list[str]]) -> None:
    folder, names = photos
    found = find_duplicates(labelled(folder, names), None, Metric.COSINE)
    (folder / "10.jpg").unlink()
    groups = find_groups(found, "largest")
    assert [error.path for error in groups.unreadable] == [str(folder / "10.jpg")]
    (group,) = groups.groups
    assert {group.keep.id, *(image.id for image in group.remove)} == {"9.jpg", "a.png", "b.jpg"}

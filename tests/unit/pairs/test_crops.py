"""Crops are found with their rectangle; other images are not taken for crops."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pyarrow import chunked_array
from sklearn.datasets import load_sample_images

from retrieval.contracts import Metric
from retrieval.images.pixels.thumbnail import thumbnail
from retrieval.pairs.crops import search
from retrieval.pairs.crops.candidates import window_correlations
from retrieval.pairs.crops.rectangle import Canvas, find_crop
from retrieval.pairs.crops.search import CropSearch
from retrieval.pairs.duplicates import Duplicates, find_duplicates
from retrieval.pairs.groups import crop_depths, find_groups
from retrieval.pairs.likeness import AS_IT_IS
from retrieval.pairs.match import Box, Crop, Match
from retrieval.pairs.thumbnails import Thumbnails
from retrieval.quality.labelled import Labelled
from retrieval.storage.names import storable

MIN_CORRELATION = 0.95
BOXES = (
    Box(0.0, 0.0, 0.5, 0.5),
    Box(0.3, 0.2, 0.9, 0.8),
    Box(0.0, 0.1, 1.0, 0.9),  # the whole width
    Box(0.25, 0.0, 0.75, 1.0),
    Box(0.05, 0.02, 0.98, 0.95),
)


def photo(number: int) -> Image.Image:
    return Image.fromarray(load_sample_images().images[number])


def cut(image: Image.Image, box: Box) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = box
    return image.crop(
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
    )


def as_jpeg(image: Image.Image, scale: float, quality: int = 85) -> Image.Image:
    file = io.BytesIO()
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def crop_of(whole: Image.Image, part: Image.Image) -> Box | None:
    found = find_crop(Canvas.of(whole), Canvas.of(part), MIN_CORRELATION)
    return None if found is None else found.box


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("number", [0, 1])
def test_crops_are_found_with_their_rectangle(number: int, box: Box, scale: float) -> None:
    image = photo(number)
    part = as_jpeg(cut(image, box), scale)
    assert crop_of(image, part) == pytest.approx(box, abs=0.01)
    assert crop_of(part, image) is None, "the whole image is no crop of its crop"


@pytest.mark.parametrize("shares", [0.9, 0.5])
def test_crops_of_small_images_are_found(shares: float) -> None:
    image = photo(0).resize((32, 32), Image.Resampling.BOX)
    box = Box(0, 0, round(32 * shares) / 32, round(32 * shares) / 32)
    assert crop_of(image, cut(image, box)) == pytest.approx(box, abs=0.02)


@pytest.mark.parametrize("box", [Box(0, 0, 0.99, 0.99), Box(0, 0, 1, 1), Box(0.1, 0.1, 0.5, 0.5)])
def test_shares_out_of_range_are_no_crops(box: Box) -> None:
    assert crop_of(photo(0), cut(photo(0), box)) is None


def overlapping() -> tuple[Image.Image, Image.Image]:
    """Two parts of one photograph: each shows something that the other does not."""
    return cut(photo(0), Box(0, 0, 0.8, 1)), cut(photo(0), Box(0.2, 0, 1, 1))


def skies() -> tuple[Image.Image, Image.Image]:
    """Smooth gradients: each is near-identical to many rectangles of the other."""
    shades = np.linspace(120, 220, 300).astype(np.uint8)
    one = np.repeat(shades[:, None, None], 400, axis=1).repeat(3, axis=2)
    return Image.fromarray(one), Image.fromarray(one[30:250])


def with_object() -> tuple[Image.Image, Image.Image]:
    """A photograph, and a part of it with an object that is not there."""
    part = cut(photo(1), Box(0.1, 0.1, 0.8, 0.8))
    ImageDraw.Draw(part).ellipse((80, 60, 160, 140), fill="#2040c0")
    return photo(1), part


def mirrored() -> tuple[Image.Image, Image.Image]:
    part = cut(photo(1), Box(0.1, 0.1, 0.8, 0.8))
    return photo(1), part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def photographs() -> tuple[Image.Image, Image.Image]:
    return photo(0), cut(photo(1), Box(0.2, 0.2, 0.9, 0.9))


def one_color() -> tuple[Image.Image, Image.Image]:
    return Image.new("RGB", (400, 300), "#888"), Image.new("RGB", (200, 200), "#888")


def darker() -> tuple[Image.Image, Image.Image]:
    part = cut(photo(0), Box(0.1, 0.1, 0.8, 0.8))
    return photo(0), part.point(lambda value: value // 2)


@pytest.mark.parametrize(
    "pair", [overlapping, skies, with_object, mirrored, photographs, one_color, darker]
)
def test_other_images_are_no_crops(
    pair: Callable[[], tuple[Image.Image, Image.Image]],
) -> None:
    one, two = pair()
    assert crop_of(one, two) is None
    assert crop_of(two, one) is None


def test_very_long_images_are_not_searched() -> None:
    image = photo(0).resize((900, 200))
    assert crop_of(image, cut(image, Box(0.1, 0, 0.7, 1))) is None


def test_thumbnails_rank_crops_before_other_images() -> None:
    images = [photo(0), photo(1), cut(photo(0), BOXES[1]), cut(photo(1), BOXES[0])]
    pixels = np.stack([thumbnail(image) for image in images])
    scores = window_correlations(pixels, np.array([0, 1, 0, 1]), np.array([2, 3, 3, 2]))
    assert scores[:2].min() > 0.85
    assert scores[2:].max() < scores[:2].min()


def test_only_the_likeliest_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(self: CropSearch, whole: int, part: int) -> None:
        compared.append((whole, part))

    monkeypatch.setattr(search, "MAX_COMPARED_CROPS", 1)
    monkeypatch.setattr(CropSearch, "_match", compare)
    images = [photo(0), photo(1), cut(photo(0), BOXES[1])]
    pixels = np.stack([thumbnail(image) for image in images])
    thumbnails = Thumbnails(pixels, np.ones(3, np.bool_), [])
    found = CropSearch.of(["a", "b", "c"], thumbnails, MIN_CORRELATION, 1.0, {})
    assert found.matches(np.array([0, 1]), np.array([1, 2])) == {}
    assert found.matches(np.array([0, 0]), np.array([1, 2])) == {}
    assert len(compared) == 2
    assert compared[1] == (0, 2)


def test_depths_count_crops_of_crops() -> None:
    assert crop_depths({}) == {}
    assert crop_depths({1: {0}, 2: {1, 0}, 3: {0}}) == {1: 1, 2: 2, 3: 1}
    assert {*crop_depths({1: {2}, 2: {1}})} == {1, 2}, "a circle ends"


def searched(folder: Path, names: list[str], others: list[str] | None = None) -> Duplicates:
    def labelled(names: list[str]) -> Labelled:
        vectors = np.random.default_rng(0).normal(size=(len(names), 4)).astype(np.float32)
        paths = [storable(str(folder / name)) for name in names]
        return Labelled(vectors, names, [None] * len(names), chunked_array([paths]))

    second = None if others is None else labelled(others)
    return find_duplicates(labelled(names), second, Metric.COSINE, crops=True)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two photographs; a crop of the first, enlarged beyond it, and a crop of this crop."""
    photo(0).save(tmp_path / "whole.png")
    photo(1).save(tmp_path / "other.png")
    part = cut(photo(0), Box(0.2, 0.1, 0.9, 0.9))
    part.resize((900, 700), Image.Resampling.BICUBIC).save(tmp_path / "part.png")
    cut(part, Box(0, 0, 0.9, 0.85)).save(tmp_path / "part of part.jpg", quality=92)
    return tmp_path


def test_groups_keep_the_whole_image(album: Path) -> None:
    found = searched(album, ["part.png", "other.png", "whole.png", "part of part.jpg"])
    for keep in ("largest", "first", "newest", "oldest"):
        (group,) = find_groups(found, keep).groups
        assert group.keep.id == "whole.png"
        assert {image.id for image in group.remove} == {"part.png", "part of part.jpg"}
        assert all(image.match.crop and image.match.crop.of_first for image in group.remove)
    rows = {(row["a"], row["b"]): row for row in found.rows()}
    row = rows["part.png", "whole.png"]
    assert (row["crop"], row["mirrored"], row["rotated"], row["exact"]) == ("a", False, 0, False)
    assert row["box"] == pytest.approx([0.2, 0.1, 0.9, 0.9], abs=0.01)
    assert rows["whole.png", "part of part.jpg"]["crop"] == "b"
    csv = find_groups(found).rows()
    assert [line["crop"] for line in csv] == [True, True]


def test_between_sets_no_whole_image_is_removed_for_a_crop(album: Path) -> None:
    found = searched(album, ["whole.png", "other.png"], ["part.png"])
    (group,) = find_groups(found).groups
    assert (group.keep.id, group.remove[0].id) == ("whole.png", "part.png")
    found = searched(album, ["part.png"], ["whole.png", "other.png"])
    assert [row["crop"] for row in found.rows()] == ["a"], "the pair is listed"
    assert find_groups(found).groups == []


def test_a_reversed_match_is_a_crop_of_the_other() -> None:
    reverse = Match(0.99, AS_IT_IS, Crop(True, BOXES[0])).reversed()
    assert reverse == Match(0.99, AS_IT_IS, Crop(False, BOXES[0]))
    assert reverse.in_words() == "crop"


def test_without_the_option_crops_are_not_searched(album: Path) -> None:
    found = searched(album, ["part.png", "whole.png"])
    assert len(found.matches) == 1
    names = ["part.png", "whole.png"]
    vectors = np.zeros((2, 4), np.float32) + 1
    images = Labelled(
        vectors, names, [None] * 2, chunked_array([[str(album / name) for name in names]])
    )
    assert find_duplicates(images, None, Metric.COSINE).matches == {}

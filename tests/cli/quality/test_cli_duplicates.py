"""`retr duplicates`: which images count as near-identical."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from tests.cli.gallery import Gallery
from tests.cli.running import Retr


def scene(seed: int) -> Image.Image:
    """Return a picture of soft blots, different for each seed."""
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture
def sets(tmp_path: Path, retr: Retr) -> tuple[Path, Path]:
    """Embeddings of ten pictures; and of five others with copies of three: saved as a JPEG, half as
    large, and mirrored and darker."""
    for name in ("a", "b"):
        (tmp_path / name / "some").mkdir(parents=True)
    for seed in range(10):
        scene(seed).save(tmp_path / "a" / "some" / f"{seed}.png")
    for seed in range(10, 15):
        scene(seed).save(tmp_path / "b" / "some" / f"{seed}.png")
    scene(2).save(tmp_path / "b" / "some" / "jpeg of 2.jpg", quality=60)
    scene(5).resize((80, 60)).save(tmp_path / "b" / "some" / "half of 5.png")
    darker = ImageOps.mirror(scene(7)).point(lambda value: int(0.8 * value))
    (tmp_path / "b" / "another").mkdir()
    darker.save(tmp_path / "b" / "another" / "mirror of 7.png")
    for name in ("a", "b"):
        retr(
            "encode", tmp_path / name, "--encoder", "toy", "--out", tmp_path / f"{name}-embeddings"
        )
    return tmp_path / "a-embeddings", tmp_path / "b-embeddings"


def test_copies_are_found_between_two_sets(retr: Retr, sets: tuple[Path, Path]) -> None:
    a, b = sets
    found = retr.json("duplicates", "--between", a, b)
    assert {(pair["a"], pair["b"], pair["mirrored"]) for pair in found["duplicates"]} == {
        ("some/2.png", "some/jpeg of 2.jpg", False),
        ("some/5.png", "some/half of 5.png", False),
        ("some/7.png", "another/mirror of 7.png", True),
    }
    correlations = [pair["correlation"] for pair in found["duplicates"]]
    assert correlations == sorted(correlations, reverse=True)
    assert min(correlations) > 0.98
    assert {(pair["label_a"], pair["label_b"]) for pair in found["duplicates"]} == {
        ("some", "some"),
        ("some", "another"),
    }
    assert found["images"] == [10, 8]
    assert found["compared"] == found["proposed"] == 80
    assert found["unreadable"] == []


def test_copies_within_a_set_are_listed_once(retr: Retr, sets: tuple[Path, Path]) -> None:
    a, _ = sets
    images = retr.cwd / "a" / "some"
    scene(4).save(images / "again.png")
    retr("encode", retr.cwd / "a", "--encoder", "toy")
    found = retr.json("duplicates")  # of the last encoded
    assert [(pair["a"], pair["b"]) for pair in found["duplicates"]] == [
        ("some/4.png", "some/again.png")
    ]
    assert found["duplicates"][0]["correlation"] == pytest.approx(1)
    assert found["images"] == [11]
    assert found["duplicates"][0]["exact"]
    assert found["compared"] == 10 * 9 / 2, "an exact copy is not compared"
    assert retr.json("duplicates", a)["duplicates"] == []
    assert "0 pairs of near-identical images among 45 pairs" in retr("duplicates", a).out


def test_table_csv_and_sheet_list_the_pairs(retr: Retr, sets: tuple[Path, Path]) -> None:
    outcome = retr("duplicates", "--between", *sets, "--out", "all.csv", "--sheet", "sheet.png")
    assert "mirrored" in outcome.out
    assert "3 pairs of near-identical images among 80 pairs of neighbors" in outcome.out
    with (retr.cwd / "all.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["mirrored"] for row in rows].count("True") == 1
    assert {row["label_b"] for row in rows} == {"some", "another"}
    with Image.open(retr.cwd / "sheet.png") as drawn:
        assert drawn.width > drawn.height > 100


def test_k_and_correlation_limit_the_pairs(retr: Retr, sets: tuple[Path, Path]) -> None:
    found = retr.json("duplicates", "--between", *sets, "--correlation", "0.9999")
    assert len(found["duplicates"]) < 3
    found = retr.json("duplicates", "--between", *sets, "-k", "1")
    assert 10 <= found["compared"] <= 13, "neighbors, and pairs with similar thumbnails"


def test_missing_image_is_named(retr: Retr, sets: tuple[Path, Path]) -> None:
    (retr.cwd / "b" / "some" / "half of 5.png").unlink()
    outcome = retr("duplicates", "--between", *sets)
    assert "half of 5.png: no such file" in outcome.err
    assert "2 pairs of near-identical images" in outcome.out


def test_bad_input_of_duplicates_is_refused(
    retr: Retr, sets: tuple[Path, Path], gallery: Gallery
) -> None:
    a, b = sets
    assert "give one of them" in retr.refused("duplicates", a, "--between", a, b)
    assert "give 1 or more" in retr.refused("duplicates", a, "-k", "0")
    assert "give one above 0, up to 1" in retr.refused("duplicates", a, "--correlation", "1.5")
    retr("encode", "digits", "--limit", "5", "--encoder", "siamese-quick", "--out", "digits")
    message = retr.refused("duplicates", "--between", a, "digits")
    assert "encode one of them again" in message
    assert "is not an embeddings folder" in retr.refused("duplicates", gallery.index())


def test_similar_parts_of_images_are_not_duplicates(retr: Retr) -> None:
    """Images with the same center, another brightness, other icons or another color differ."""
    folder = retr.cwd / "alike"
    folder.mkdir()
    for number in range(3):
        wide = Image.new("RGB", (1500, 300))
        wide.paste(scene(20 + number).resize((600, 300)), (0, 0))
        wide.paste(scene(30).resize((300, 300)), (600, 0))
        wide.paste(scene(40 + number).resize((600, 300)), (900, 0))
        wide.save(folder / f"wide {number}.png")
    scene(50).save(folder / "day.png")
    scene(50).point(lambda value: value // 2).save(folder / "night.png")
    scene(50).resize((120, 160)).save(folder / "upright.png")
    for number, color in enumerate(["black", "white", "#646464", "#6e6e6e"]):
        Image.new("RGB", (64, 64), color).save(folder / f"plain {number}.png")
    for number, box in enumerate([(8, 8, 56, 56), (4, 28, 60, 36), (28, 4, 36, 60)]):
        icon = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
        icon.paste("white", box)
        icon.save(folder / f"white icon {number}.png")
    scene(50).save(folder / "day.webp", quality=80)
    Image.new("RGB", (90, 90), "#646464").save(folder / "plain 2.jpg")
    icon.resize((128, 128)).save(folder / "white icon 2 larger.png")
    retr("encode", folder, "--encoder", "toy", "--out", "alike-embeddings")
    found = retr.json("duplicates", "alike-embeddings", "-k", "20", "--as-is")
    assert {(pair["a"], pair["b"], pair["mirrored"]) for pair in found["duplicates"]} == {
        ("day.png", "day.webp", False),
        ("plain 2.jpg", "plain 2.png", False),
        ("white icon 2 larger.png", "white icon 2.png", False),
    }


def test_a_lower_correlation_finds_crops(retr: Retr) -> None:
    folder = retr.cwd / "crops"
    folder.mkdir()
    photo = Image.fromarray(load_sample_images().images[0])
    photo.save(folder / "whole.png")
    photo.crop((6, 4, photo.width - 6, photo.height - 4)).save(folder / "crop.png")
    retr("encode", folder, "--encoder", "toy", "--out", "crops-embeddings")
    assert retr.json("duplicates", "crops-embeddings")["duplicates"] == []
    found = retr.json("duplicates", "crops-embeddings", "--correlation", "0.8")
    assert [(pair["a"], pair["b"]) for pair in found["duplicates"]] == [("crop.png", "whole.png")]

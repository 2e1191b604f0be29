"""Thumbnails propose every pair that is similar in some turn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import BadImage
from retrieval.pairs.likeness import TURNS, Patterns, turned_pixels
from retrieval.pairs.thumbnails import MAX_PARTNERS, SIDE, Thumbnails, turned_spectra


def thumbnails(pixels: np.ndarray) -> Thumbnails:
    return Thumbnails(pixels, np.ones(len(pixels), np.bool_), [])


def smooth(count: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(256, size=(count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((SIDE, SIDE), 3)) for c in coarse])


def correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the highest correlation of each two images in any turn, written out."""
    b = Patterns.of(two)
    flat = np.c_[b.units.reshape(len(two), -1), b.noise]
    found = []
    for turn in TURNS:
        a = Patterns.of(turned_pixels(one, turn))
        found.append(np.c_[a.units.reshape(len(one), -1), a.noise] @ flat.T)
    return np.max(found, axis=0)


@pytest.mark.parametrize("turn", TURNS)
def test_turns_do_not_change_the_invariants(turn: tuple[bool, int]) -> None:
    pixels = smooth(5, 0)
    one = thumbnails(pixels).invariants
    two = thumbnails(np.ascontiguousarray(turned_pixels(pixels, turn))).invariants
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_invariants_are_no_farther_than_the_images_in_any_turn() -> None:
    pixels = np.concatenate(
        [
            smooth(30, 1),
            np.random.default_rng(2).integers(256, size=(30, SIDE, SIDE, 3), dtype=np.uint8),
        ]
    )
    found = thumbnails(pixels).invariants
    apart = np.linalg.norm(found[:, None] - found, axis=2)
    bound = np.sqrt(np.maximum(0, 2 - 2 * correlations(pixels, pixels)))
    assert (apart <= bound + 1e-3).all()
    assert np.median(apart / np.maximum(bound, 1e-9)) > 0.5, "they distinguish images"


@pytest.mark.parametrize("least", [0.7, 0.95])
def test_partners_are_all_pairs_above_the_limit(least: float) -> None:
    base = smooth(400, 3)
    noise = np.random.default_rng(4).normal(scale=12, size=base.shape)
    changed = np.clip(base + noise, 0, 255).astype(np.uint8)
    pixels = np.concatenate(
        [base, *(turned_pixels(changed[i::8], turn) for i, turn in enumerate(TURNS))]
    )
    images = thumbnails(pixels)
    one, two = np.arange(400), np.arange(400, 800)
    wanted = {(a, 400 + b) for a, b in np.argwhere(correlations(pixels[one], pixels[two]) >= least)}
    assert len(wanted) > 300
    a, b = images.partners(one, two, least)
    assert wanted <= {*zip(a.tolist(), b.tolist(), strict=True)}
    a, b = images.partners(np.arange(800), None, least)
    proposed = {*zip(a.tolist(), b.tolist(), strict=True)}
    assert wanted <= proposed
    assert (a < b).all()
    assert len(proposed) == len(a), "each pair once"
    np.testing.assert_allclose(
        turned_spectra(images.spectra[:8], TURNS[3]),
        thumbnails(np.ascontiguousarray(turned_pixels(pixels[:8], TURNS[3]))).spectra,
        atol=1e-5,
    )
    confirmed = images.alike(one, two, least, TURNS)
    expected = [correlations(pixels[[i]], pixels[[j]])[0, 0] for i, j in zip(one, two, strict=True)]
    np.testing.assert_array_equal(confirmed.any(axis=1), np.array(expected) >= least)


def test_blank_images_have_few_partners() -> None:
    """Each blank image is connected to the others, by way of others."""
    pixels = np.full((3000, SIDE, SIDE, 3), 200, np.uint8)
    a, b = thumbnails(pixels).partners(np.arange(3000), None, 0.95)
    assert len(a) <= 3000 * (MAX_PARTNERS + 1)
    assert {*a.tolist(), *b.tolist()} == {*range(3000)}


def test_unreadable_images_are_in_no_pair(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20), "#8a5").save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a.png", "gone.png", "b.png")]
    steps: list[tuple[int, int]] = []
    images = Thumbnails.read(paths, lambda done, total: steps.append((done, total)))
    assert images.known.tolist() == [True, False, True]
    assert [type(error) for error in images.unreadable] == [BadImage]
    assert steps == [(3, 3)]
    a, b = images.partners(np.arange(3), None, 0.95)
    assert (a.tolist(), b.tolist()) == ([0], [2])
    assert not images.alike(np.array([0]), np.array([1]), 0.5, TURNS).any()
    none = images.partners(np.array([1]), None, 0.95)
    assert [len(rows) for rows in none] == [0, 0]

"""Augmentation of whole batches, against numpy written out."""

import numpy as np
import pytest
import torch

from encoders.training.batches.augmentation import (
    alternating_flip,
    augmented,
    cropped,
    cut_mixed,
    cut_out,
    flipped,
    grayed,
    recolored,
    shifted,
)
from encoders.training.recipe import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_alternating_flip_shows_both_views_in_two_epochs() -> None:
    coin = torch.rand(50, generator=generator()) < 0.5
    first, second = (alternating_flip(epoch, coin) for epoch in (0, 1))
    assert torch.equal(first, ~second)
    assert 10 < first.sum() < 40


def test_flipped_mirrors_the_masked_images() -> None:
    images = torch.rand(2, 3, 4, 5, generator=generator())
    result = flipped(images, torch.tensor([True, False]))
    assert torch.equal(result[0], images[0].flip(2))
    assert torch.equal(result[1], images[1])


def test_shifted_moves_each_image_and_reflects_its_edges() -> None:
    images = torch.rand(40, 3, 8, 8, generator=generator())
    result = shifted(images, 2, generator(1))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    met = set()
    for before, after in zip(padded, result.numpy(), strict=True):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(before[:, y : y + 8, x : x + 8], after)
        ]
        assert len(places) == 1
        met.add(places[0])
    assert len(met) > 12  # 40 images, 25 places


def test_recolored_keeps_patterns() -> None:
    images = torch.rand(4, 3, 6, 6, generator=generator())
    result = recolored(images, 0.4, generator(1))
    for before, after in zip(images.flatten(2), result.flatten(2), strict=True):
        for channel in range(3):
            assert np.corrcoef(before[channel], after[channel])[0, 1] == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(images, result, atol=0.02)


def test_cropped_scales_up_a_square_of_each_image() -> None:
    # Values rise by 1 from left to right and by 10 from top to bottom.
    ramp = torch.linspace(0, 1, 16)
    plane = ramp[None, :] + 10 * ramp[:, None]
    result = cropped(plane.expand(50, 3, 16, 16), 0.25, 0, generator())
    right = (result[:, :, :, -3] - result[:, :, :, 2]).mean((1, 2))
    down = (result[:, :, -3] - result[:, :, 2]).mean((1, 2)) / 10
    whole = ramp[-3] - ramp[2]
    torch.testing.assert_close(right, down, atol=0.02, rtol=0)  # squares stay squares
    assert right.min() > 0.45 * whole
    assert right.max() < 1.01 * whole
    assert right.max() - right.min() > 0.2
    assert result.min() >= 0
    assert result.max() <= 11


def test_cropped_scales_to_the_requested_side() -> None:
    images = torch.rand(4, 3, 16, 16, generator=generator())
    whole = cropped(images, 1.0, 8, generator(1))
    # Between two pixels in each direction, bilinear is the mean of both.
    torch.testing.assert_close(whole, torch.nn.functional.avg_pool2d(images, 2))
    assert cropped(images, 0.5, 8, generator(1)).shape == (4, 3, 8, 8)


def test_cropped_enlarges_bicubically() -> None:
    images = torch.rand(4, 3, 16, 16, generator=generator())
    whole = cropped(images, 1.0, 48, generator(1))
    wanted = torch.nn.functional.interpolate(images, 48, mode="bicubic")
    inside = (..., slice(6, -6), slice(6, -6))  # edges are reflected in one, repeated in the other
    torch.testing.assert_close(whole[inside], wanted[inside])


def test_cropped_rotates_both_ways_within_the_limit() -> None:
    # Values rise by 1 from left to right: how steeply they do along both sides says the angle.
    plane = torch.linspace(-1, 1, 17).expand(200, 3, 17, 17)
    result = cropped(plane, 1.0, 0, generator(), 30)
    right = (result[:, 0, 8, 12] - result[:, 0, 8, 4]).numpy()
    down = (result[:, 0, 12, 8] - result[:, 0, 4, 8]).numpy()
    degrees = np.degrees(np.arctan2(-down, right))
    assert np.allclose(np.hypot(right, down), 1, atol=0.01)  # turned, and not scaled
    assert -30 <= degrees.min() < -25
    assert 25 < degrees.max() <= 30


def test_grayed_removes_the_color_of_some_images() -> None:
    images = torch.rand(200, 3, 4, 4, generator=generator())
    result = grayed(images, 0.3, generator(1))
    gray = (result == result[:, :1]).flatten(1).all(1)
    assert 40 < gray.sum() < 80
    torch.testing.assert_close(result[~gray], images[~gray])
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    torch.testing.assert_close(result[gray][:, 0], luma[gray])


def test_cut_out_fills_one_square_of_each_image() -> None:
    images = torch.rand(300, 3, 12, 12, generator=generator())
    result = cut_out(images, 4, generator(1))
    changed = (result != images).any(1)
    sizes = changed.flatten(1).sum(1)
    assert sizes.max() == 16
    assert (sizes == 16).sum() > 100  # the others stick out at an edge
    assert changed.any(0).all()  # every place is met
    for before, after, square in zip(images[:20], result[:20], changed[:20], strict=True):
        assert torch.equal(before[:, ~square], after[:, ~square])
        rows, columns = torch.nonzero(square, as_tuple=True)
        height = rows.max() - rows.min() + 1
        width = columns.max() - columns.min() + 1
        assert height * width == square.sum()
        torch.testing.assert_close(
            after[:, square], images.mean((0, 2, 3)).view(3, 1).expand(3, square.sum())
        )


def test_no_augmentation_leaves_the_images() -> None:
    images = torch.rand(5, 3, 8, 8, generator=generator())
    coin = torch.ones(5, dtype=torch.bool)
    assert torch.equal(augmented(images, Augmentation(), 0, coin, generator()), images)
    two = augmented(images, Augmentation(views=2), 0, coin, generator())
    assert torch.equal(two, torch.cat((images, images)))


ALL_AUGMENTATIONS = Augmentation(
    flip="random", translate=2, cutout=3, smallest_crop=0.5, recolour=0.4, greyscale=0.2, views=2
)


@pytest.mark.parametrize("settings", [ALL_AUGMENTATIONS, Augmentation(flip="alternating")])
def test_augmentation_follows_its_generator(settings: Augmentation) -> None:
    images = torch.rand(6, 3, 8, 8, generator=generator())
    coin = torch.tensor([True, False] * 3)
    first, again, other = (
        augmented(images, settings, 0, coin, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (settings.flip == "alternating")
    if settings.views == 2:
        assert first.shape == (12, 3, 8, 8)
        assert not torch.equal(first[:6], first[6:])


def test_cut_mixed_puts_a_box_of_each_image_into_another() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 8).contiguous()
    kept = []
    for seed in range(60):
        mixed = cut_mixed(images, 1.0, generator(seed))
        other = mixed.images != images
        assert sorted(mixed.partners.tolist()) == [*range(6)]
        for own, partner, image in zip(
            range(6), mixed.partners.tolist(), mixed.images, strict=True
        ):
            assert set(image.unique().tolist()) <= {own, partner}
        moved = other[mixed.partners != torch.arange(6)]
        if len(moved) and moved.any():
            rows, columns = (moved[0, 0].any(dim).nonzero().flatten() for dim in (1, 0))
            area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)  # one box, the same
            assert torch.equal(moved, moved[:1].expand_as(moved))
            assert moved[0, 0].sum() == area
            assert mixed.kept == pytest.approx(1 - area.item() / 80)
        kept.append(mixed.kept)
    assert min(kept) < 0.3 and max(kept) > 0.9
    assert 0.5 < np.mean(kept) < 0.75  # more than half, since boxes reach beyond the edge


def test_cut_mixed_mixes_the_given_share_of_batches() -> None:
    images = torch.rand(4, 3, 8, 8, generator=generator())
    mixed = [cut_mixed(images, 0.3, generator(seed)) for seed in range(200)]
    assert 40 < sum(each.images is not images for each in mixed) < 80
    plain = next(each for each in mixed if each.images is images)
    assert plain.kept == 1 and plain.partners.tolist() == [0, 1, 2, 3]

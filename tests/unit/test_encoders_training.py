"""The parts of training, against numpy written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.siamese import MirrorAveraged, SiameseNetwork
from encoders.training import autoencoder, siamese
from encoders.training.augmentation import (
    alternating_flip,
    cropped,
    flipped,
    recoloured,
    shifted,
)
from encoders.training.data import TrainingSet
from encoders.training.losses import CosineClassifier, supervised_contrastive, views_agree
from encoders.training.muon import Muon, orthogonalised
from encoders.training.runs import embed, score

SMALL = siamese.Recipe(widths=(8, 12, 16), dim=6, epochs=2, batch=40)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_vectors(n: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator()), dim=1)


def coloured(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Images of three classes that differ in colour, in noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = rng.integers(0, 120, (n, 32, 32, 3))
    images[np.arange(n), :, :, labels] += 100
    return images.astype(np.uint8), labels.astype(np.int64)


def test_supervised_contrastive_is_equation_2() -> None:
    vectors, labels = unit_vectors(7, 3), [0, 0, 1, 1, 1, 2, 0]  # the 2 has no positive
    z = vectors.double().numpy() @ vectors.double().numpy().T / 0.1
    losses = []
    for i, label in enumerate(labels):
        others = [j for j in range(7) if j != i]
        positives = [j for j in others if labels[j] == label]
        if positives:
            total = math.log(sum(math.exp(z[i, a]) for a in others))
            losses.append(-sum(z[i, p] - total for p in positives) / len(positives))
    loss = supervised_contrastive(vectors, torch.tensor(labels), 0.1)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_cosine_classifier_is_softmax_of_scaled_cosines() -> None:
    classifier = CosineClassifier(3, 4, scale=8, smoothing=0)
    vectors, labels = unit_vectors(5, 3), [0, 3, 1, 2, 2]
    proxies = classifier.proxies.detach().numpy()
    logits = 8 * vectors.numpy() @ (proxies / np.linalg.norm(proxies, axis=1, keepdims=True)).T
    expected = np.mean(
        [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    )
    assert classifier(vectors, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonalised_moves_singular_values_towards_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator())
    values = torch.linalg.svdvals(orthogonalised(matrix, 5).float())
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ideal = (u @ v).flatten()
    met = orthogonalised(matrix, 5).float().flatten()
    assert torch.dot(ideal, met) / (ideal.norm() * met.norm()) > 0.97


def test_muon_descends_and_holds_the_norm() -> None:
    target = torch.nn.functional.normalize(torch.randn(6, 6, generator=generator()), dim=1)
    weight = torch.nn.Parameter(torch.eye(6))
    optimizer = Muon([weight], lr=0.05)
    first = (weight - target).square().sum().item()
    for _ in range(60):
        loss = (weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 3
    assert weight.norm().item() == pytest.approx(6**0.5, rel=0.1)


def test_alternating_flip_shows_both_views_in_two_epochs() -> None:
    coin = torch.rand(50, generator=generator()) < 0.5
    rows = torch.arange(50)
    first, second = (alternating_flip(rows, epoch, coin) for epoch in (0, 1))
    assert torch.equal(first, ~second)
    assert 10 < first.sum() < 40


def test_flipped_mirrors_what_the_mask_says() -> None:
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
    assert len(met) > 12  # of 25 places, by 40 images


def test_recoloured_keeps_patterns() -> None:
    images = torch.rand(4, 3, 6, 6, generator=generator())
    result = recoloured(images, 0.4, generator(1))
    for before, after in zip(images.flatten(2), result.flatten(2), strict=True):
        for channel in range(3):
            assert np.corrcoef(before[channel], after[channel])[0, 1] == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(images, result, atol=0.02)


def test_cropped_scales_up_a_square_of_each_image() -> None:
    # Values rise by 1 from left to right and by 10 from top to bottom.
    ramp = torch.linspace(0, 1, 16)
    plane = ramp[None, :] + 10 * ramp[:, None]
    result = cropped(plane.expand(50, 3, 16, 16), 0.25, generator())
    right = (result[:, :, :, -3] - result[:, :, :, 2]).mean((1, 2))
    down = (result[:, :, -3] - result[:, :, 2]).mean((1, 2)) / 10
    whole = ramp[-3] - ramp[2]
    torch.testing.assert_close(right, down, atol=0.02, rtol=0)  # squares stay squares
    assert right.min() > 0.45 * whole
    assert right.max() < 1.01 * whole
    assert right.max() - right.min() > 0.2
    assert result.min() >= 0
    assert result.max() <= 11


def test_views_agree_is_the_nt_xent_loss() -> None:
    a, b = unit_vectors(8, 3).chunk(2)
    z = torch.cat((a, b)).double().numpy()
    exps = np.exp(z @ z.T / 0.5)
    losses = [-np.log(exps[i, (i + 4) % 8] / (exps[i].sum() - exps[i, i])) for i in range(8)]
    assert views_agree(a, b, 0.5).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_training_separates_classes_and_is_repeatable() -> None:
    images, labels = coloured()
    first = siamese.train(images, labels, SMALL)
    result = score(embed(first, images), labels)
    assert result.map is not None
    assert result.map > 0.8
    again = siamese.train(images, labels, SMALL)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_whitening_filters_whiten() -> None:
    images = torch.rand(200, 3, 8, 8, generator=generator())
    images = images + images.mean(1, keepdim=True) - 1
    filters = siamese.whitening_filters(images, eps=0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    response = torch.nn.functional.conv2d(images, filters[:12])
    flat = response.permute(1, 0, 2, 3).flatten(1)
    gram = flat @ flat.T / flat.shape[1]
    assert torch.allclose(gram, torch.eye(12), atol=1e-3)


def test_folding_does_not_change_the_function() -> None:
    images, labels = coloured()
    network = siamese.train(images, labels, SMALL)
    folded = network.folded()
    batch = torch.rand(16, 3, 32, 32, generator=generator())
    with torch.inference_mode():
        torch.testing.assert_close(folded(batch), network(batch), atol=1e-5, rtol=0)
        view = MirrorAveraged(network)
        torch.testing.assert_close(view(batch), view(batch.flip(-1)), atol=1e-5, rtol=0)


def test_network_of_weights_has_their_sizes() -> None:
    network = SiameseNetwork((8, 12, 16), 6)
    again = SiameseNetwork.of_weights(network.state_dict())
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.eval()(batch), again.eval()(batch))


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    images, labels = coloured()
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d+; lower"):
        siamese.train(images, labels, replace(SMALL, scale=float("nan")))


def test_autoencoder_learns_to_draw() -> None:
    # Plain images, each of a colour of its own: three numbers say all there is to draw.
    colours = np.random.default_rng(0).integers(0, 256, (120, 1, 1, 3), dtype=np.uint8)
    images = np.broadcast_to(colours, (120, 32, 32, 3)).copy()
    recipe = autoencoder.Recipe(width=8, dim=8, batch=20, epochs=20, contrastive_weight=0)
    recipe = replace(recipe, lr=1e-2)
    network = autoencoder.train(images, recipe)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        error = (network(batch) - batch).square().mean().item()
    assert error < batch.var().item() / 2  # which the mean image of all would give


def test_a_split_parts_the_set() -> None:
    images, labels = coloured()
    data = TrainingSet(images, labels, ("a", "b", "c"), "made", "0")
    kept, held_out = data.split(20, seed=1)
    assert (len(kept.images), len(held_out.images)) == (100, 20)
    rows = {image.tobytes() for image in images}
    met = [image.tobytes() for image in (*kept.images, *held_out.images)]
    assert set(met) == rows
    assert len(met) == len(rows)

"""The networks behind the encoders: what folding, heads and our convolution must not change."""

import pytest
import torch
from torch import nn

from encoders.autoencoder import AutoencoderNetwork, AutoencoderSettings
from encoders.blocks.convolution import Conv3x3, patches
from encoders.blocks.heads import ClassShares, Rotation, ViewsAveraged, Whitening
from encoders.siamese import SiameseNetwork, SiameseSettings, whitening_filters
from retrieval.contracts import Metric


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(random(*shape, seed=seed) - 0.5, dim=-1)


def siamese(**settings: object) -> SiameseNetwork:
    """A small network whose norms have seen some batches."""
    torch.manual_seed(0)
    network = SiameseNetwork(SiameseSettings(widths=(8, 12, 16), dim=6, **settings), 3, 32)  # type: ignore[arg-type]
    images = random(64, 3, 32, 32, seed=1)
    network.prepare(images)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias, std=0.3)
    for _ in range(3):
        network(images)
    return network.eval()


def test_whitening_filters_whiten() -> None:
    images = random(200, 3, 8, 8)
    images = images + images.mean(1, keepdim=True) - 1
    filters = whitening_filters(images, eps=0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    response = nn.functional.conv2d(images, filters[:12])
    flat = response.permute(1, 0, 2, 3).flatten(1)
    gram = flat @ flat.T / flat.shape[1]
    assert torch.allclose(gram, torch.eye(12), atol=1e-3)


def test_gray_images_repeat_whitening_filters() -> None:
    gray = random(200, 1, 8, 8).expand(-1, 3, -1, -1)
    filters = whitening_filters(gray)
    assert torch.equal(filters[:4], filters[4:8])
    assert torch.equal(filters[:4], filters[8:12])
    response = nn.functional.conv2d(gray - gray.mean(), filters)
    assert response.std((0, 2, 3)).min() > 0.1  # none is dead
    black = whitening_filters(torch.zeros(20, 3, 8, 8))
    assert black.shape == (24, 3, 2, 2) and black.isfinite().all()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_folding_does_not_change_the_function(depth: int) -> None:
    network = siamese(depth=depth)
    batch = random(16, 3, 32, 32, seed=2)
    with torch.inference_mode():
        torch.testing.assert_close(network.folded()(batch), network(batch), atol=1e-5, rtol=0)
        assert not torch.allclose(network(batch)[0], network(batch)[1], atol=0.05)


def test_the_third_convolution_adds_to_the_first() -> None:
    network = siamese(depth=3)
    block = network.blocks[1]
    nn.init.zeros_(block.convs[2].weight)  # type: ignore[union-attr]
    block.norms[2] = nn.Identity()  # type: ignore[union-attr]
    x = random(2, 8, 8, 8)
    with torch.inference_mode():
        first = nn.functional.max_pool2d(block.convs[0](x), 2)  # type: ignore[union-attr]
        shortcut = nn.functional.gelu(block.norms[0](first))  # type: ignore[union-attr]
        torch.testing.assert_close(block(x), nn.functional.gelu(shortcut))


def test_mirror_images_have_equal_embeddings() -> None:
    batch = random(4, 3, 32, 32, seed=2)
    with torch.inference_mode():
        embedder = siamese().embedder()
        torch.testing.assert_close(embedder(batch), embedder(batch.flip(-1)), atol=1e-5, rtol=0)
        plain = siamese(mirror=False).embedder()
        assert not torch.allclose(plain(batch), plain(batch.flip(-1)), atol=1e-3)


def test_without_unit_length_it_is_euclidean() -> None:
    network = siamese(unit_length=False)
    assert network.metric is Metric.EUCLIDEAN
    batch = random(4, 3, 32, 32, seed=2)
    with torch.inference_mode():
        assert network(batch).norm(dim=1).std() > 0.01
        torch.testing.assert_close(
            ViewsAveraged(network, mirror=True, unit_length=False)(batch),
            (network(batch) + network(batch.flip(-1))) / 2,
        )


def test_shifted_views_are_moved_two_ways() -> None:
    images = random(2, 3, 6, 6)
    views = ViewsAveraged(nn.Identity(), mirror=True, shift=1).views(images)
    assert len(views) == 6
    assert torch.equal(views[0], images)
    assert torch.equal(views[1][..., :-1, :-1], images[..., 1:, 1:])
    assert torch.equal(views[2][..., 1:, 1:], images[..., :-1, :-1])
    for view, mirrored in zip(views[:3], views[3:], strict=True):
        assert view.shape == images.shape
        assert torch.equal(view.flip(-1), mirrored)


def test_class_shares_are_a_softmax_appended_to_the_vector() -> None:
    vectors, proxies = unit(5, 4), unit(3, 4, seed=1)
    result = ClassShares(proxies, sharpness=7, weight=2)(vectors)
    shares = torch.exp(7 * vectors @ proxies.T)
    shares = 2 * shares / shares.norm(dim=1, keepdim=True)
    expected = torch.cat((vectors, shares), 1) / 5**0.5  # 1² + 2²
    torch.testing.assert_close(result, expected)


def test_inner_products_of_shares_are_the_chance_of_one_class() -> None:
    vectors, proxies = unit(5, 4), unit(3, 4, seed=1)
    result = ClassShares(proxies, sharpness=7, weight=2, unit_length=False)(vectors)
    torch.testing.assert_close(result[:, :4], vectors)
    shares = torch.softmax(7 * vectors @ proxies.T, 1)
    products = result @ result.T - vectors @ vectors.T
    torch.testing.assert_close(products, 4 * shares @ shares.T)


def test_a_network_with_class_shares_has_their_dimensions() -> None:
    network = siamese(class_sharpness=10.0)
    assert (network.training_dim, network.dim) == (6, 9)
    network.keep_proxies(3 * unit(3, 6))
    with torch.inference_mode():
        vectors = network.embedder()(random(2, 3, 32, 32))
    assert vectors.shape == (2, 9)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert network.proxies is not None
    torch.testing.assert_close(network.proxies.norm(dim=1), torch.ones(3))


def test_patches_are_the_surroundings() -> None:
    x = random(2, 3, 4, 5)
    met = patches(x.to(memory_format=torch.channels_last)).view(2, 4, 5, 3, 3, 3)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for row in range(4):
        for column in range(5):
            window = padded[:, :, row : row + 3, column : column + 3]
            assert torch.equal(met[:, row, column].permute(0, 3, 1, 2), window)


@pytest.mark.parametrize("side", [3, 4, 7, 8, 9])
def test_our_convolution_has_torch_s_gradients(side: int) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(6, 10)
    nn.init.normal_(conv.weight)
    x = random(5, 6, side, side).to(memory_format=torch.channels_last).requires_grad_()
    seen = []
    for training in (True, False):  # in evaluation mode it is torch's own
        conv.train(training)
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (y.float() * random(*y.shape, seed=3)).sum().backward()
        assert x.grad is not None
        assert conv.weight.grad is not None
        seen.append((y.float(), x.grad.clone(), conv.weight.grad.clone()))
        x.grad = conv.weight.grad = None
    for ours, theirs in zip(*seen, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_our_convolution_starts_as_the_identity() -> None:
    x = random(2, 4, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(Conv3x3(4, 7)(x)[:, :4], x)


def test_whitening_gives_uncorrelated_numbers_of_unit_variance() -> None:
    features = random(500, 8) @ random(8, 8, seed=1) + 3
    head = Whitening(8, 5)
    head.fit(features)
    white = head(features).double()
    torch.testing.assert_close(white.mean(0), torch.zeros(5).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(5).double(), atol=2e-2, rtol=0)
    # The first axis is that along which the features vary most.
    assert head.axes.norm(dim=0)[0] == head.axes.norm(dim=0).min()


def test_whitening_by_half_halves_the_logarithm_of_variances() -> None:
    features = random(500, 8) @ random(8, 8, seed=1) + 3
    head = Whitening(8, 8, power=0.5)
    torch.testing.assert_close(head(features), features)
    head.fit(features)
    deviations = torch.linalg.svdvals((features - features.mean(0)).double()) / 499**0.5
    torch.testing.assert_close(head(features).double().std(0), deviations**0.5, rtol=1e-2, atol=0)


def test_whitening_of_too_few_directions() -> None:
    with pytest.raises(ValueError, match="9 principal axes of 8 features"):
        Whitening(8, 9)
    flat = random(50, 2) @ random(2, 8)
    for features, spread in ((flat, [1.0, 1.0, 0.0]), (torch.ones(50, 8), [0.0, 0.0, 0.0])):
        head = Whitening(8, 3)
        head.fit(features)
        torch.testing.assert_close(head(features).std(0), torch.tensor(spread), atol=0.02, rtol=0)


def test_rotation_brings_vectors_close_to_their_signs() -> None:
    # Codes of 16 bits, turned away from the axes and with some noise, are found again.
    torch.manual_seed(0)
    codes = (random(400, 16) - 0.5).sign()
    turned = codes @ torch.linalg.qr(random(16, 16, seed=1))[0] + 0.1 * random(400, 16, seed=2)
    head = Rotation(16)
    torch.testing.assert_close(head(turned), turned)
    head.fit(turned)
    back = head(turned)
    torch.testing.assert_close(head.axes @ head.axes.T, torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(back @ back.T, turned @ turned.T, atol=1e-3, rtol=0)
    assert (back - back.sign()).square().mean() < 0.3 * (turned - turned.sign()).square().mean()
    longer = torch.cat((turned, random(400, 3)), 1)
    torch.testing.assert_close(head(longer), torch.cat((back, longer[:, 16:]), 1))


@pytest.mark.parametrize("blocks", [None, (8, 8, 12)])
def test_an_autoencoder_draws_images_of_the_side_it_was_made_for(
    blocks: tuple[int, int, int] | None,
) -> None:
    settings = AutoencoderSettings(width=4, blocks=blocks, dim=5, projection=7)
    network = AutoencoderNetwork(settings, 0, 16)
    network.prepare(random(64, 3, 16, 16, seed=1))
    network.eval()
    with torch.inference_mode():
        outputs = network.outputs(random(2, 3, 16, 16))
        assert outputs.embeddings.shape == (2, 7)
        assert outputs.drawn is not None
        assert outputs.drawn.shape == (2, 3, 16, 16)
        assert network.embedder()(random(2, 3, 16, 16)).shape == (2, 5)
    with pytest.raises(ValueError, match="20"):
        AutoencoderNetwork(AutoencoderSettings(), 0, 20)

"""The common part of torch encoders, and the encoders that ship."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from encoders.blocks.convolution import TwoPartConv
from encoders.inference import TorchEncoder, fingerprint_of, floats, load_weights, torch_device
from encoders.pretrained import PretrainedNetwork
from retrieval.contracts import Framing, Metric
from retrieval.errors import BadData, BadInput
from retrieval.registry import open_encoder
from tests.examples import slow
from tests.made import photographs

FRAMING = Framing(side=4)


class Mean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def encoder_of(network: nn.Module, batch: int = 2, bfloat16: bool = True) -> TorchEncoder:
    return TorchEncoder(
        network,
        name="mean",
        dim=3,
        metric=Metric.COSINE,
        framing=FRAMING,
        config={},
        weights={},
        device="cpu",
        batch=batch,
        bfloat16=bfloat16,
    )


def mean_encoder(batch: int = 2) -> TorchEncoder:
    return encoder_of(Mean(), batch)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_batches_are_concatenated_in_order(n: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    vectors = mean_encoder().encode(images)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, images.mean((1, 2)) / 255, atol=4e-3)  # bfloat16


def test_views_and_read_only_arrays_are_accepted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    expected = mean_encoder().encode(np.ascontiguousarray(images[::-1]))
    images.flags.writeable = False
    np.testing.assert_array_equal(mean_encoder().encode(images[::-1]), expected)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 5, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"images must be \(n, 4, 4, 3\) uint8, got"):
        mean_encoder().encode(images)


def test_unknown_or_missing_devices_are_refused() -> None:
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(BadInput, match="device cannot be 'tpu'; give auto, cpu or cuda"):
        torch_device("tpu")
    if not torch.cuda.is_available():
        assert torch_device("auto").type == "cpu"
        with pytest.raises(BadInput, match="torch sees no GPU"):
            torch_device("cuda")


def test_fingerprint_depends_on_config_framing_and_weights() -> None:
    weights = {"w": torch.arange(6.0).reshape(2, 3)}
    first = fingerprint_of({"version": 1}, FRAMING, weights)
    assert first == fingerprint_of({"version": 1}, FRAMING, {"w": weights["w"].clone()})
    others = [
        fingerprint_of({"version": 2}, FRAMING, weights),
        fingerprint_of({"version": 1}, Framing(side=5), weights),
        fingerprint_of({"version": 1}, Framing(side=4, crop=0.9), weights),
        fingerprint_of({"version": 1}, FRAMING, {"v": weights["w"]}),
        fingerprint_of({"version": 1}, FRAMING, {"w": weights["w"].reshape(3, 2)}),
        fingerprint_of({"version": 1}, FRAMING, {"w": weights["w"] + 1e-6}),
    ]
    assert len({first, *others}) == 7


def test_damaged_weights_file_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    for name in ("bad.safetensors", "gone.safetensors"):
        with pytest.raises(BadData, match=name):
            load_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["siamese-quick", "autoencoder", "autoencoder-10"])
def test_shipped_encoders_embed_mirror_images_equally(name: str) -> None:
    encoder = open_encoder(name, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    a, b = encoder.encode(images), encoder.encode(images[:, :, ::-1])
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


@pytest.mark.parametrize("name", ["siamese", "siamese-quick"])
def test_siamese_vectors_have_unit_length(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    vectors = open_encoder(name, "cpu").encode(images)
    assert vectors.shape == (9, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "name", [slow("siamese"), "siamese-quick", "autoencoder", "autoencoder-10"]
)
def test_bfloat16_gives_the_embeddings_of_float32(name: str) -> None:
    encoder = open_encoder(name, "cpu")
    assert isinstance(encoder, TorchEncoder)
    images = floats(torch.from_numpy(photographs(16, encoder.framing.side)))
    with torch.inference_mode():
        exact = encoder.network(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder.network(images)
    same = functional.cosine_similarity(exact, rounded.float())
    assert same.min() > 0.999


@pytest.mark.parametrize("may", [True, False])
def test_bfloat16_only_where_the_network_may(may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Precision(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.new_full((len(images), 1), float(torch.is_autocast_enabled("cpu")))

    encoder = encoder_of(Precision(), bfloat16=may)
    images = np.zeros((1, 4, 4, 3), np.uint8)
    for capable in (True, False):
        capabilities = {"avx512_bf16": capable}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert encoder.encode(images)[0, 0] == float(may and capable)
    assert not PretrainedNetwork.bfloat16_embeddings


def test_a_convolution_of_two_parts_rounds_less() -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 8, 6, 6, generator=generator).bfloat16().float()
    with torch.inference_mode():
        exact = conv(images)
        assert torch.equal(TwoPartConv(conv)(images), exact)
        with torch.autocast("cpu", torch.bfloat16):
            error = [
                (each(images).float() - exact.bfloat16().float()).square().mean().sqrt().item()
                for each in (conv, TwoPartConv(conv))
            ]
    assert error[1] < error[0] / 4

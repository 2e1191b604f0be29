"""Networks exported to ONNX: the same embeddings, kept whole, opened without torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from encoders.inference import TorchEncoder, floats
from encoders.onnx_encoder import Exported
from encoders.write_onnx import MAX_DEVIATION, write_onnx
from retrieval.embedding.onnx_cache import (
    EXPORT,
    NETWORK,
    ExportFacts,
    export_folder,
    keep_export,
    open_export,
)
from retrieval.errors import BadData, BadInput, CannotExport
from retrieval.registry import open_encoder
from retrieval.storage.files import locked, sha256_of
from retrieval.testing import check_encoder
from tests.made import photographs


@pytest.fixture
def quick() -> Any:
    return open_encoder("siamese-quick", "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "siamese",
        "siamese-quick",
        "autoencoder",
        "autoencoder-10",
        "pretrained:tf_efficientnet_lite0",
    ],
)
def test_embeddings_are_those_of_torch(name: str) -> None:
    encoder = open_encoder(name, "cpu")
    assert isinstance(encoder, TorchEncoder)
    keep_export(encoder)
    exported = open_export(encoder.fingerprint)
    assert isinstance(exported, Exported)
    assert (exported.name, exported.dim) == (encoder.name, encoder.dim)
    assert (exported.metric, exported.framing) == (encoder.metric, encoder.framing)
    assert exported.fingerprint == encoder.fingerprint
    assert exported.config == encoder.config
    for count in (0, 1, 6):
        images = photographs(count, encoder.framing.side)
        with torch.inference_mode():
            expected = encoder.network(floats(torch.from_numpy(images))).numpy()
        met = exported.encode(images)
        length = np.linalg.norm(expected, axis=1).max(initial=1)
        np.testing.assert_allclose(met, expected, rtol=0, atol=MAX_DEVIATION * length)


def test_an_exported_encoder_keeps_the_contract(quick: Any) -> None:
    keep_export(quick)
    exported = open_export(quick.fingerprint)
    assert isinstance(exported, Exported)
    check_encoder(exported)


def test_damaged_exports_are_written_again(quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    whole = (folder / NETWORK).read_bytes()
    for damage in (whole[:-1], b"", whole[:100] + b"?" + whole[101:]):
        (folder / NETWORK).write_bytes(damage)
        assert open_export(quick.fingerprint) is None
        with pytest.raises(BadData, match="has a checksum mismatch with"):
            Exported(str(folder))
    (folder / NETWORK).unlink()
    assert open_export(quick.fingerprint) is None
    keep_export(quick)
    assert (folder / NETWORK).read_bytes() == whole
    assert open_export(quick.fingerprint) is not None


def test_file_that_is_not_a_network_is_refused(quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    facts = ExportFacts.read(folder)
    (folder / NETWORK).write_bytes(b"no network")
    replace(facts, network_sha256=sha256_of(folder / NETWORK)).write(folder)
    with pytest.raises(BadData, match=r"cannot read .*network\.onnx"):
        Exported(str(folder))
    assert open_export(quick.fingerprint) is None


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "retr-export", "version": 1}'])
def test_incomplete_facts_are_refused(text: str, quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    (folder / EXPORT).write_text(text)
    with pytest.raises(BadData):
        Exported(str(folder))
    assert open_export(quick.fingerprint) is None


def test_export_of_another_encoder_is_refused(quick: Any) -> None:
    keep_export(quick)
    other = quick.fingerprint[:16] + "0" * 48
    assert open_export(other) is None
    assert open_export("f" * 64) is None


def test_gpu_encoders_have_no_export(quick: Any) -> None:
    keep_export(quick)
    assert open_export(quick.fingerprint, "cuda") is None
    with pytest.raises(BadInput, match="cannot run on 'cuda'"):
        Exported(str(export_folder(quick.fingerprint)), "cuda")


def test_encoder_without_a_network_has_no_export() -> None:
    toy = open_encoder("toy")
    keep_export(toy)
    assert not export_folder(toy.fingerprint).exists()


def test_concurrent_exports(quick: Any) -> None:
    folder = export_folder(quick.fingerprint)
    folder.mkdir(parents=True)
    with locked(folder):
        keep_export(quick)
    assert open_export(quick.fingerprint) is None  # the other process writes it
    keep_export(quick)
    assert open_export(quick.fingerprint) is not None


class ByChance(nn.Module):
    """Says something else each time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.rand(3)


class Elsewhere(nn.Module):
    """Computes where no exporter sees it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(images.mean((2, 3)).numpy())


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (ByChance(), "are off by"),
        (Elsewhere(), "cannot be exported"),
        (Fails(), "no such thing"),
    ],
)
def test_network_with_a_different_output_is_refused(
    network: nn.Module, why: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotExport, match=why):
        write_onnx(network, 8, tmp_path / "network.onnx")

"""Networks exported to ONNX: the same embeddings, kept whole, opened without torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import photographs
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


def test_what_is_damaged_is_not_opened_and_written_anew(quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    whole = (folder / NETWORK).read_bytes()
    for damage in (whole[:-1], b"", whole[:100] + b"?" + whole[101:]):
        (folder / NETWORK).write_bytes(damage)
        assert open_export(quick.fingerprint) is None
        with pytest.raises(BadData, match="not the file that"):
            Exported(str(folder))
    (folder / NETWORK).unlink()
    assert open_export(quick.fingerprint) is None
    keep_export(quick)
    assert (folder / NETWORK).read_bytes() == whole
    assert open_export(quick.fingerprint) is not None


def test_a_file_that_is_no_network_is_said(quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    facts = ExportFacts.read(folder)
    (folder / NETWORK).write_bytes(b"no network")
    replace(facts, network_sha256=sha256_of(folder / NETWORK)).write(folder)
    with pytest.raises(BadData, match=r"cannot read .*network\.onnx"):
        Exported(str(folder))
    assert open_export(quick.fingerprint) is None


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "retr-export", "version": 1}'])
def test_facts_that_say_too_little_are_bad_data(text: str, quick: Any) -> None:
    keep_export(quick)
    folder = export_folder(quick.fingerprint)
    (folder / EXPORT).write_text(text)
    with pytest.raises(BadData):
        Exported(str(folder))
    assert open_export(quick.fingerprint) is None


def test_another_encoder_is_not_opened(quick: Any) -> None:
    keep_export(quick)
    other = quick.fingerprint[:16] + "0" * 48
    assert open_export(other) is None
    assert open_export("f" * 64) is None


def test_a_gpu_has_none(quick: Any) -> None:
    keep_export(quick)
    assert open_export(quick.fingerprint, "cuda") is None
    with pytest.raises(BadInput, match="cannot run on 'cuda'"):
        Exported(str(export_folder(quick.fingerprint)), "cuda")


def test_an_encoder_without_a_network_is_left_alone() -> None:
    toy = open_encoder("toy")
    keep_export(toy)
    assert not export_folder(toy.fingerprint).exists()


def test_two_at_once(quick: Any) -> None:
    folder = export_folder(quick.fingerprint)
    folder.mkdir(parents=True)
    with locked(folder):
        keep_export(quick)
    assert open_export(quick.fingerprint) is None  # which is the other's to write
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
    [(ByChance(), "is off by"), (Elsewhere(), "cannot be exported"), (Fails(), "no such thing")],
)
def test_a_network_that_would_say_something_else_is_refused(
    network: nn.Module, why: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotExport, match=why):
        write_onnx(network, 8, tmp_path / "network.onnx")

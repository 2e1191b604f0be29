"""Every registered encoder against the contract."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.contracts import Images, Vectors
from retrieval.registry import encoder_names, open_encoder
from retrieval.testing import check_encoder
from tests.dual_models import save_model

# Encoders that need an argument, with one that works without a network.
ARGUMENTS = {"pretrained": "tf_efficientnet_lite0"}
OF_FOLDERS = {
    "exported",
    "exported-text",
    "clip",
}  # tests create such a folder and run the suite on it


def specs() -> list[str]:
    names = [name for name in encoder_names() if name not in OF_FOLDERS]
    return [f"{name}:{ARGUMENTS[name]}" if name in ARGUMENTS else name for name in names]


@pytest.mark.parametrize("spec", specs())
def test_contract(spec: str) -> None:
    check_encoder(open_encoder(spec, device="cpu"))


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "MobileCLIP"])
def test_contract_of_dual_encoders(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / "model")
    check_encoder(open_encoder(f"clip:{folder}", device="cpu"))


def broken(fault: str, encode: Any, images: Images) -> Vectors:
    vectors: Vectors = encode(images)
    match fault:
        case "depends on the batch":
            vectors = vectors - vectors.mean(axis=0)
        case "float64":
            return vectors.astype(np.float64)
        case "not finite":
            vectors[:, 0] = np.nan
        case "changes images":
            images //= 2
        case "constant":
            return np.ones_like(vectors)
        case "another dimension":
            return vectors[:, :-1]
        case "not the same twice":
            noise = np.random.default_rng().random(vectors.shape, np.float32)
            return vectors + np.float32(0.01) * noise
    return vectors


FAULTS = [
    "depends on the batch",
    "float64",
    "not finite",
    "changes images",
    "constant",
    "another dimension",
    "not the same twice",
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_suite_detects_violations(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = open_encoder("toy")
    monkeypatch.setattr(encoder, "encode", partial(broken, fault, encoder.encode))
    with pytest.raises(AssertionError):
        check_encoder(encoder)


@pytest.mark.parametrize("fingerprint", ["", "0" * 63, "G" * 64, "0" * 64])
def test_the_suite_notices_a_fingerprint(fingerprint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = open_encoder("toy")
    monkeypatch.setattr(encoder, "fingerprint", fingerprint)
    with pytest.raises(AssertionError, match="fingerprint"):
        check_encoder(encoder)

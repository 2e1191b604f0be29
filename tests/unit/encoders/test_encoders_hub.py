"""Weights of pretrained models from the model hub, here one on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save

MODEL = "test_resnet"  # the smallest that timm has
OTHER = "test_vit"  # its weights are never fetched


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(MODEL, pretrained=False)
    return model.eval()


@pytest.fixture(scope="module")
def hub(network: torch.nn.Module) -> Iterator[str]:
    """The address of a hub that has the one model, whatever it is asked for."""
    weights = save({k: v.contiguous() for k, v in network.state_dict().items()})

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(weights)

        def answer(self, body: bytes) -> None:
            found = self.path.endswith("/resolve/main/model.safetensors")
            self.send_response(200 if found else 404)
            self.send_header("ETag", f'"{sha256(weights).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(weights) if found else 0))
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, *message: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(code: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the code in a process of its own: the hub's address is read when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


SHOW = f"""
import json, numpy as np
from retrieval.registry import open_encoder
encoder = open_encoder("pretrained:{MODEL}", "cpu")
images = np.arange(160 * 160 * 3, dtype=np.uint32).reshape(1, 160, 160, 3).astype(np.uint8)
print(json.dumps({{
    "name": encoder.name, "dim": encoder.dim, "side": encoder.framing.side,
    "fingerprint": encoder.fingerprint, "weights": encoder.config["weights"],
    "vector": encoder.encode(images)[0].tolist(),
}}))
"""


# In the process of SHOW: to import torch and timm takes long.
FAIL = f"""
import time
from retrieval.errors import BadInput, RetrError
began = time.monotonic()
try:
    open_encoder("pretrained:{OTHER}", "cpu")
except RetrError as error:
    print(not isinstance(error, BadInput), time.monotonic() - began < 30, error)
"""


def test_weights_come_from_the_hub_or_the_cache_or_are_said_to_be_missing(
    hub: str, network: torch.nn.Module, tmp_path: Path
) -> None:
    done = run(SHOW, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    met = json.loads(done.stdout)
    assert (met["name"], met["side"]) == (f"pretrained:{MODEL}", 160)
    assert met["weights"].startswith("hub: timm/test_resnet")

    images = torch.arange(160 * 160 * 3).reshape(1, 160, 160, 3).to(torch.uint8)
    config = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        features = network.forward_features((images.permute(0, 3, 1, 2) / 255 - mean) / std)
        expected = network.forward_head(features, pre_logits=True)[0].numpy()  # type: ignore[operator]
    vector = np.array(met["vector"])
    assert len(vector) == met["dim"] == len(expected)
    cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
    assert cosine > 0.999

    again = run(SHOW + FAIL, "http://127.0.0.1:9", tmp_path)  # nothing listens there
    from_cache, error = again.stdout.splitlines()
    assert json.loads(from_cache)["fingerprint"] == met["fingerprint"]
    assert error.startswith(f"True True cannot fetch the weights of {OTHER} from the model hub")
    assert "connect to the network, or use pretrained:tf_efficientnet_lite0" in error

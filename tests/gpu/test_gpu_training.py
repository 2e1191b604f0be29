"""Training and encoding on a real GPU: a run that can be killed, whose encoder works on both."""

from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.inference import TorchEncoder
from encoders.training import run as training_run
from encoders.training.recipe import Augmentation, Data, Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.contracts import Framing, Metric
from retrieval.images import load, open_source
from retrieval.registry import open_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

DEVICE = "cuda"
SIAMESE = Recipe(
    encoder="siamese",
    network={"widths": [16, 32, 32], "dim": 6, "class_sharpness": 16.0},
    losses=(
        Loss("normalised-softmax", options={"temperature": 0.125}),
        Loss("supervised-contrastive", weight=0.5),
    ),
    epochs=4,
    data=Data("digits", validation=200),
    sampler=Sampler(batch=100),
    augmentation=Augmentation(
        translate=2, cutout=4, smallest_crop=0.8, rotate=10, recolour=0.1, greyscale=0.1, views=2
    ),
    optimizer=Optimizer("muon", lr=0.1, other_lr=0.02),
)
AUTOENCODER = Recipe(
    encoder="autoencoder",
    network={"dim": 10, "width": 8},
    losses=(Loss("reconstruction"),),
    epochs=2,
    data=Data("digits", validation=200),
    sampler=Sampler(batch=100),
    optimizer=Optimizer("adamw", lr=0.01),
)
PRETRAINED = Recipe(
    encoder="pretrained",
    network={
        "side": 64,
        "dim": 16,
        "class_sharpness": 16.0,
        "metric": "inner_product",
        "itq": True,
    },
    losses=(Loss("normalised-softmax", options={"temperature": 0.125}),),
    epochs=2,
    data=Data("digits", side=32, per_class=40, validation=100),
    sampler=Sampler(batch=50),
    augmentation=Augmentation(cutmix=0.5),
    optimizer=Optimizer("adamw", lr=0.001, other_lr=0.01),
)


class Stop(Exception):
    """Raised in the midst of a run."""


@pytest.mark.parametrize(
    "recipe", [SIAMESE, AUTOENCODER, PRETRAINED], ids=lambda recipe: recipe.encoder
)
def test_stopped_run_continues_and_devices_embed_equally(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0)  # after every step
    steps: list[int] = []

    def stop(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 3:
            raise Stop

    with pytest.raises(Stop):
        train(recipe, tmp_path, device=DEVICE, on_step=stop)
    went_on: list[int] = []
    card = train(recipe, tmp_path, device=DEVICE, on_step=lambda done, total: went_on.append(done))
    assert went_on[0] == steps[-1]  # the stopped step was not saved
    if recipe is SIAMESE:
        mean_precision = card.training.metrics["map"]
        assert isinstance(mean_precision, float) and mean_precision > 0.6

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # in float32
    on_gpu, on_cpu = (open_encoder(str(tmp_path), device) for device in (DEVICE, "cpu"))
    assert on_gpu.fingerprint == on_cpu.fingerprint
    items = [*open_source("digits", "test").items()][:50]
    images = np.stack([load(item, on_cpu.framing) for item in items])
    vectors, expected = on_gpu.encode(images), on_cpu.encode(images)
    cosine = (vectors * expected).sum(1) / np.prod(
        [np.linalg.norm(each, axis=1) for each in (vectors, expected)], axis=0
    )
    assert cosine.min() > 0.99


def test_numbers_beyond_float16_are_computed_in_float32() -> None:
    class Large(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            weight = torch.full((1, 3 * 4 * 4), 1e5, device=images.device)
            return torch.nn.functional.linear(images.flatten(1), weight)

    encoder = TorchEncoder(
        Large(),
        name="large",
        dim=1,
        metric=Metric.INNER_PRODUCT,
        framing=Framing(side=4),
        config={},
        weights={},
        device=DEVICE,
        batch=2,
    )
    vectors = encoder.encode(np.full((1, 4, 4, 3), 255, np.uint8))
    assert vectors[0, 0] == pytest.approx(48e5, rel=1e-3)

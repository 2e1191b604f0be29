"""Write the folder of a trained encoder: weights, card, list of training images, pictures."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from encoders.inference import autocast, floats
from encoders.networks import Network
from encoders.training.reports import RECONSTRUCTIONS, draw_reconstructions, machine, versions
from encoders.training.scoring import rows_to_show
from encoders.training.setup import RunSetup
from retrieval.contracts import Json
from retrieval.storage.cards import IMAGES, WEIGHTS, Card, TrainingFacts
from retrieval.storage.files import sha256_of, write_whole

MAX_DRAWN_IMAGES = 50


def rounded_weights(network: Network) -> dict[str, Tensor]:
    """Return the network's weights as they are written: float16, except `network.precise`.

    Raises FloatingPointError for weights that are too large for float16.
    """
    result = {}
    for name, tensor in network.state_dict().items():
        to_half = tensor.is_floating_point() and name not in network.precise
        rounded = (tensor.half() if to_half else tensor).contiguous().cpu()
        if not torch.isfinite(rounded).all():
            largest = tensor.abs().max().item()
            raise FloatingPointError(
                f"the weights {name} reach {largest:.3g}, which float16 does not hold"
            )
        result[name] = rounded
    return result


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights into the folder."""
    write_whole(folder / WEIGHTS, lambda path: path.write_bytes(save(dict(weights))))


def write_image_ids(setup: RunSetup, folder: Path) -> None:
    """Write the ids of the training images, one a line; an evaluation leaves these images out."""
    own = [setup.data.ids[row] for row in setup.data.training.tolist()]
    ids = [*own, *sorted(setup.start.ids.difference(own))]
    text = "".join(f"{name}\n" for name in ids)
    write_whole(folder / IMAGES, lambda path: path.write_text(text, encoding="utf-8"))


@torch.inference_mode()
def write_drawings(setup: RunSetup, folder: Path) -> None:
    """Write a picture of some images above the network's drawings of them."""
    rows, _ = rows_to_show(setup, MAX_DRAWN_IMAGES)
    images = setup.data.images[rows[:MAX_DRAWN_IMAGES]]
    network = setup.network.eval()
    with autocast(setup.device):
        drawn = network.outputs(floats(torch.from_numpy(images).to(setup.device))).drawn
    assert drawn is not None
    pixels = drawn.permute(0, 2, 3, 1).float().cpu().numpy()
    draw_reconstructions(folder / RECONSTRUCTIONS, images, pixels)


def write_card(setup: RunSetup, folder: Path, seconds: float, metrics: Mapping[str, Json]) -> Card:
    """Write the card, which makes the folder a trained encoder, and return it.

    seconds: duration of the whole training.
    """
    recipe, network = setup.recipe, setup.network
    card = Card(
        encoder=recipe.encoder,
        network=recipe.network,
        classes=setup.data.names,
        dim=network.dim,
        metric=network.metric,
        framing=setup.framing,
        weights_sha256=sha256_of(folder / WEIGHTS),
        training=TrainingFacts(
            recipe=recipe.to_json(),
            data=setup.origin(),
            seed=recipe.seed,
            machine=machine(setup.device),
            versions=versions(),
            minutes=round(seconds / 60, 2),
            metrics=dict(metrics),
        ),
    )
    card.write(folder)
    return card

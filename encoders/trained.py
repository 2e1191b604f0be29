"""Encoders that `retr train` made: a folder with weights and a card."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from encoders.inference import TorchEncoder, load_weights, torch_device
from encoders.networks import Network
from retrieval.errors import BadData
from retrieval.storage.cards import CARD, WEIGHTS, Card

VERSION = 3  # raise it when a network's arithmetic changes; part of the fingerprint
SHIPPED = Path(__file__).parent / "weights"


class TrainedEncoder(TorchEncoder):
    """An encoder around a trained network; a subclass says which network that is.

    plugin: the encoder's name in a card. ships_as: the folder of the weights that ship with retr,
    if its name differs.
    """

    plugin: ClassVar[str]
    ships_as: ClassVar[str] = ""
    network_type: ClassVar[type[Network]]

    @classmethod
    def shipped(cls) -> Path:
        """Return the folder of the weights that ship with retr."""
        return SHIPPED / (cls.ships_as or cls.plugin)

    def __init__(self, folder: str | None = None, device: str = "auto") -> None:
        """Load the weights of a trained encoder's folder, or those that ship with retr.

        device: auto, cpu or cuda. Raises BadData for another folder or a damaged one.
        """
        network, _, facts = self.loaded(folder)
        self.trained = network.to(torch_device(device))
        super().__init__(network.embedder(), metric=network.metric, device=device, **facts)

    @classmethod
    def loaded(cls, folder: str | None) -> tuple[Network, Card, dict[str, Any]]:
        """Return the network in the folder, its card, and arguments of `TorchEncoder`.

        folder: None for the weights that ship with retr. Raises BadData as `__init__` does.
        """
        path = cls.shipped() if folder is None else Path(folder).expanduser().resolve()
        card = Card.read(path)
        network, weights = load_network(cls.network_type, card, path)
        facts = {
            "name": path.name if folder is None else f"{cls.plugin}:{path}",
            "dim": network.dim,
            "framing": card.framing,
            "config": {
                "encoder": cls.plugin,
                "version": VERSION,
                "network": dict(card.network),
                "weights_sha256": card.weights_sha256,
            },
            "weights": weights,
            "batch": network.at_once,
            "bfloat16": network.bfloat16_embeddings,
            "files": (path / CARD, path / WEIGHTS),
        }
        return network, card, facts


def load_network(
    kind: type[Network], card: Card, folder: Path
) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return the trained network of the folder and its weights.

    Raises BadData if the weights and the card do not fit.
    """
    weights = load_weights(card.check_weights(folder))
    try:
        settings: Any = kind.settings_type(**card.network)
        network = kind(settings, len(card.classes), card.framing.side)
        network.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise BadData(
            f"{folder} does not match its card ({first}); train the encoder again"
        ) from None
    return network.eval(), weights

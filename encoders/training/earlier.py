"""Encoders of earlier runs, that a recipe goes on from."""

from pathlib import Path

from encoders.training.recipe import recipe_names
from retrieval.contracts import Encoder
from retrieval.errors import BadInput
from retrieval.registry import open_encoder


def open_earlier(key: str, spec: str, device: str = "auto") -> Encoder:
    """The encoder that a recipe's key names, as `open_encoder` has it.

    Raises what that raises, and BadInput with the command that makes the encoder where a recipe
    that ships does.
    """
    folder = Path(spec).expanduser()
    if "/" in spec and not folder.exists() and folder.name in recipe_names():
        raise BadInput(
            f"{key}: {spec} is not there; 'retr train {folder.name} --out {spec}' makes it"
        )
    return open_encoder(spec, device)

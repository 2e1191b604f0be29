"""Encoders of earlier runs that a recipe refers to."""

from pathlib import Path

from encoders.training.recipe import recipe_names
from retrieval.contracts import Encoder
from retrieval.errors import BadInput
from retrieval.registry import open_encoder


def open_earlier(key: str, spec: str, device: str = "auto") -> Encoder:
    """Open the encoder that a recipe's key names; see `open_encoder`.

    Raises the errors of `open_encoder`; BadInput names the command if a recipe that ships makes the
    encoder.
    """
    folder = Path(spec).expanduser()
    if "/" in spec and not folder.exists() and folder.name in recipe_names():
        raise BadInput(
            f"{key}: {spec} not found; run 'retr train {folder.name} --out {spec}' first"
        )
    return open_encoder(spec, device)

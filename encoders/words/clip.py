"""Dual encoders that open_clip publishes or saved: CLIP, SigLIP, MobileCLIP, CoCa and others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.utils import reparameterize_model

from encoders.hub import LocalFolder, Repository
from encoders.inference import torch_device
from encoders.words.checkpoints import Checkpoint, open_checkpoint
from encoders.words.dual import COMPARED_TEXTS, DualEncoder
from encoders.words.hub_tokenizer import open_tokenizer
from encoders.words.published import DEFAULT_MODEL
from encoders.words.tokenizer import Tokenizer
from encoders.words.towers import ImageTower, TextTower, framing_of, load_model, vocabulary_of
from retrieval.contracts import Json, Prompts
from retrieval.errors import BadData

VERSION = 1  # raise it when the arithmetic here changes; part of the fingerprint
IMAGES_PER_BATCH = 32
# Seven templates that CLIP's authors chose for ImageNet: Radford et al., Learning transferable
# visual models from natural language supervision, arXiv:2103.00020, section 3.1.4.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class Clip(DualEncoder):
    """`clip:MODEL@TAG#REVISION`, `clip:hf-hub:REPOSITORY#REVISION` or `clip:FOLDER`.

    MODEL and TAG are open_clip's names of a model and its weights. Weights are read from
    safetensors files, of the model hub or of a folder that open_clip saved. Images are framed and
    standardized as the model's configuration says.
    """

    plugin: ClassVar[str] = "clip"

    def __init__(self, model: str = DEFAULT_MODEL, device: str = "auto") -> None:
        """Open the model; its weights are fetched unless they are in the hub's cache.

        device: auto, cpu or cuda. Raises UnknownName for a model or tag that open_clip does not
        have, BadInput for a repository or folder without safetensors or for an input that is not a
        square, BadData for damaged files, RetrError if the hub cannot be reached.
        """
        torch_device(device)  # an error, before gigabytes are fetched
        checkpoint = open_checkpoint(model)
        tokenizer = open_tokenizer(checkpoint.text, _tokenizer_home(checkpoint))
        network, key = load_model(checkpoint)
        framing, mean, std = framing_of(network.visual.preprocess_cfg)
        _check_vocabulary(tokenizer, vocabulary_of(network))
        weights = network.state_dict()
        prompts = prompts_of(network)
        visual = reparameterize_model(network.visual, inplace=True)  # FastViT's branches in one
        del network.visual
        super().__init__(
            ImageTower(visual, mean, std),
            TextTower(network),
            tokenizer,
            prompts,
            name=f"{self.plugin}:{checkpoint.name}",
            dim=int(checkpoint.model["embed_dim"]),
            framing=framing,
            config={
                "encoder": self.plugin,
                "version": VERSION,
                "network": key,
                "mean": [*mean],
                "std": [*std],
            },
            weights=weights,
            device=device,
            batch=IMAGES_PER_BATCH,
            bfloat16=False,
            files=checkpoint.files,
        )
        self.config |= _origin(checkpoint)  # not part of the fingerprint


def prompts_of(network: Any) -> Prompts:
    """Return the templates for names of classes, and the scale and bias of the weights."""
    bias = network.logit_bias
    with torch.inference_mode():
        return Prompts(
            templates=TEMPLATES,
            scale=float(network.logit_scale.exp().reshape(())),
            bias=None if bias is None else float(bias.reshape(())),
        )


def _check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raise BadData if ordinary texts have tokens that the text tower does not know."""
    if tokenizer(COMPARED_TEXTS).max() >= vocabulary:
        raise BadData(
            f"the tokenizer has {tokenizer.vocabulary:,} tokens, the text tower {vocabulary:,}; "
            "save the model with its own tokenizer"
        )


def _tokenizer_home(checkpoint: Checkpoint) -> LocalFolder | Repository | None:
    """Return the folder or repository with the files of the tokenizer; None for CLIP's own."""
    name = checkpoint.text.get("hf_tokenizer_name")
    if not name:
        return None
    if isinstance(checkpoint.home, LocalFolder):
        return checkpoint.home
    return checkpoint.repository(str(name))


def _origin(checkpoint: Checkpoint) -> Mapping[str, Json]:
    """Return the origin of the weights, and the commits of other repositories with files."""
    others = checkpoint.other_revisions()
    return {**checkpoint.origin, **({"other_revisions": others} if others else {})}

"""Published weights of open_clip's models: the tags of each, and their repositories on the hub."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from retrieval.errors import BadInput, UnknownName

HUB_PREFIX = "hf-hub:"
DEFAULT_MODEL = "ViT-B-32-256"  # its tag is datacomp_s34b_b86k
# Beginnings of tags, the preferred first: large public sets of images, under a permissive license.
PREFERRED_TAGS = ("datacomp_xl", "datacomp_s34b", "datacomp1b", "laion2b", "webli", "openai")
MAX_NEAR_NAMES = 12


@dataclass(frozen=True)
class Published:
    """Weights of a model, under one tag.

    tags: of the model. config, preprocess: open_clip's configuration. repository: on the model
    hub. file: a safetensors file in it; empty for open_clip's usual name. revision: as the user
    named it; empty for the default.
    """

    model: str
    tag: str
    tags: Sequence[str]
    config: dict[str, Any]
    preprocess: dict[str, Any]
    repository: str
    file: str
    revision: str


def find_published(spec: str) -> Published:
    """Return the weights that `MODEL`, `MODEL@TAG` or `MODEL@TAG#REVISION` names.

    Raises UnknownName for a model or tag that open_clip does not have, BadInput for a model
    without published weights.
    """
    named, revision = split_revision(spec)
    model, at, tag = named.partition("@")
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise UnknownName("model of open_clip", model, _near(model, open_clip.list_models()))
    tags = [
        tag
        for tag in list_pretrained_tags_by_model(model)
        if get_pretrained_cfg(model, tag)["hf_hub"]
    ]
    if not tags:
        raise BadInput(
            f"open_clip has no weights of {model}; choose another model, or give a folder"
        )
    tag = tag.lower().replace("-", "_") if at else preferred_tag(tags)
    if tag not in tags:
        raise UnknownName(f"tag of {model}", tag, tags)
    weights = get_pretrained_cfg(model, tag)
    if weights.get("quick_gelu"):  # open_clip only warns that the weights need it
        config["quick_gelu"] = True
    repository, file = os.path.split(weights["hf_hub"])
    return Published(
        model=model,
        tag=tag,
        tags=tags,
        config=config,
        preprocess=weights,
        repository=repository,
        file=Path(file).with_suffix(".safetensors").name if file else "",
        revision=revision,
    )


def preferred_tag(tags: Sequence[str]) -> str:
    """Return the tag that is taken if the user names none."""
    for beginning in PREFERRED_TAGS:
        for tag in tags:
            if tag.startswith(beginning):
                return tag
    return tags[0]


def split_revision(spec: str) -> tuple[str, str]:
    """Return what stands before and after `#`. Raises BadInput if nothing follows it."""
    named, mark, revision = spec.partition("#")
    if mark and not revision:
        raise BadInput(f"the revision in '{spec}' is empty; give a branch, a tag or a commit")
    return named, revision


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Return some of the names that resemble this one; all, if none does."""
    by_lower = {model.lower(): model for model in known}
    near = get_close_matches(name[:100].lower(), by_lower, n=MAX_NEAR_NAMES, cutoff=0.5)
    return [by_lower[model] for model in near] or list(by_lower.values())

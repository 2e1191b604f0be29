"""Checkpoints of dual encoders: a configuration and weights, in a folder or on the model hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoders.hub import DEFAULT_REVISION, LocalFolder, Repository
from encoders.words.published import HUB_PREFIX, Published, find_published, split_revision
from retrieval.contracts import Json
from retrieval.errors import BadData, BadInput

CONFIG = "open_clip_config.json"
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
FOLDER_WEIGHTS = (*HUB_WEIGHTS, "model.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model of open_clip, before it is built.

    name: what opens it again, after `clip:`. model, preprocess: open_clip's configuration, as in
    `open_clip_config.json`. weights: a safetensors file. home: the folder or repository that holds
    it. origin: model, tag, repository and revision, for people.
    """

    name: str
    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    home: LocalFolder | Repository
    origin: Mapping[str, Json]
    opened: dict[str, Repository] = field(default_factory=dict)

    @property
    def text(self) -> dict[str, Any]:
        """Configuration of the text tower."""
        text: dict[str, Any] = self.model["text_cfg"]
        return text

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the model is made of: of a folder all, of the hub's commit the weights."""
        if isinstance(self.home, LocalFolder):
            return tuple(sorted(path for path in self.home.path.iterdir() if path.is_file()))
        return (self.weights,)

    def repository(self, name: str) -> Repository:
        """Return a repository that the configuration names; its home, if that is the one."""
        if isinstance(self.home, Repository) and self.home.name == name:
            return self.home
        return self.opened.setdefault(name, Repository(name))

    def other_revisions(self) -> dict[str, Json]:
        """Return the commit of each other repository that files were taken from."""
        return {name: opened.revision for name, opened in self.opened.items()}


def open_checkpoint(spec: str) -> Checkpoint:
    """Return the checkpoint of `MODEL@TAG#REVISION`, `hf-hub:REPOSITORY#REVISION` or a folder.

    Raises UnknownName for a model or tag that open_clip does not have, BadInput or BadData for a
    folder or repository without what is needed, RetrError if the hub cannot be reached.
    """
    if not spec:
        raise BadInput(
            "the model after 'clip:' is empty; give a model of open_clip, such as "
            "clip:ViT-B-32-256, or a folder"
        )
    if spec.startswith(HUB_PREFIX):
        return _of_repository(spec.removeprefix(HUB_PREFIX))
    place = Path(spec).expanduser()
    if "/" in spec.partition("#")[0] or spec.startswith((".", "~")):
        return _of_folder(place)
    try:
        published = find_published(spec)
    except BadInput:
        if place.is_dir():
            return _of_folder(place)
        raise
    return _of_model(published)


def _of_folder(place: Path) -> Checkpoint:
    if not place.is_dir():
        raise BadInput(
            f"there is no folder {place}; give a folder with {CONFIG}, or a model of open_clip, "
            "such as clip:ViT-B-32-256"
        )
    home = LocalFolder(place.resolve())
    config = home.find(CONFIG)
    if config is None:
        raise BadInput(f"{place} has no {CONFIG}; give a folder that open_clip saved")
    weights = home.find(*FOLDER_WEIGHTS)
    if weights is None:
        pickles = [path.name for pattern in PICKLES for path in place.glob(pattern)]
        raise BadInput(
            f"{place} has its weights as a pickle ({pickles[0]}), which could run code; "
            f"save them as {HUB_WEIGHTS[0]}"
            if pickles
            else f"{place} has no weights; put {HUB_WEIGHTS[0]} there"
        )
    model, preprocess = _read_config(config)
    return Checkpoint(str(home.path), model, preprocess, weights, home, {})


def _of_repository(spec: str) -> Checkpoint:
    name, revision = split_revision(spec)
    home = Repository(name, revision or DEFAULT_REVISION)
    config = home.find(CONFIG, recheck=True)
    if config is None:
        raise BadInput(f"{name} has no {CONFIG}; name a repository of an open_clip model")
    weights = home.find(*HUB_WEIGHTS)
    if weights is None:
        raise BadInput(
            f"{name} has no {HUB_WEIGHTS[0]}, and pickles are not loaded; name another repository"
        )
    model, preprocess = _read_config(config)
    origin: dict[str, Json] = {"repository": name, "revision": home.revision}
    return Checkpoint(
        f"{HUB_PREFIX}{name}#{home.revision}", model, preprocess, weights, home, origin
    )


def _of_model(published: Published) -> Checkpoint:
    home = Repository(published.repository, published.revision or DEFAULT_REVISION)
    weights = home.find(*([published.file] if published.file else HUB_WEIGHTS), recheck=True)
    if weights is None:
        others = [tag for tag in published.tags if tag != published.tag]
        raise BadInput(
            f"{home.name} has no {published.file or HUB_WEIGHTS[0]}, and pickles are not loaded; "
            + (f"tags of {published.model}: {', '.join(others)}" if others else "choose another")
        )
    origin: dict[str, Json] = {
        "model": published.model,
        "tag": published.tag,
        "repository": home.name,
        "revision": home.revision,
    }
    name = f"{published.model}@{published.tag}#{home.revision}"
    return Checkpoint(name, published.config, published.preprocess, weights, home, origin)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations of model and preprocessing in an `open_clip_config.json`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model, preprocess = found["model_cfg"], found.get("preprocess_cfg") or {}
        if not all(isinstance(part, dict) for part in (model, preprocess)):
            raise TypeError("not an object")
        if not all(isinstance(model[part], dict) for part in ("text_cfg", "vision_cfg")):
            raise TypeError("not an object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadData(f"cannot read {path} ({reason}); save the model again") from None
    return model, preprocess

"""The loss of captions: images near captions of their class, and far from those of others."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from encoders.networks import Network
from encoders.training.recipe import Captions
from retrieval.errors import BadInput, UnknownName

PLACE = "{}"  # stands for the name in a template


def captions_of(settings: Captions, classes: Sequence[str]) -> list[list[str]]:
    """Return all captions of each class: every template with every name.

    Raises UnknownName for names of a class that there is not, BadInput for a template without a
    place for the name.
    """
    for template in settings.templates:
        if PLACE not in template:
            raise BadInput(f"captions.templates: '{template}' has no {PLACE} for a name; add it")
    for name in settings.names:
        if name not in classes:
            raise UnknownName("class in captions.names", name, classes)
    return [
        [
            template.replace(PLACE, name)
            for template in settings.templates
            for name in settings.names.get(label) or (label,)
        ]
        for label in classes
    ]


def drawn_captions(
    captions: Sequence[Sequence[str]], per_class: int, generator: Generator
) -> tuple[list[str], Tensor]:
    """Return `per_class` captions of each class, drawn at random, and their classes (texts,)."""
    drawn = [
        of_class[int(torch.randint(len(of_class), (), generator=generator))]
        for of_class in captions
        for _ in range(per_class)
    ]
    return drawn, torch.arange(len(captions)).repeat_interleave(per_class)


def caption_loss(
    network: Network, embeddings: Tensor, labels: Tensor, texts: Sequence[str], classes: Tensor
) -> Tensor:
    """Return the loss of embeddings (n, dim) with labels (n,) beside texts of these classes.

    Each pair of an image and a text is a yes-or-no question, as in SigLIP (Zhai et al.,
    arXiv:2303.15343): whether both have one class. Answers are summed over the texts, and
    averaged over images and captions of a class.
    """
    logits = network.caption_logits(embeddings, texts)
    assert logits is not None
    same = labels[:, None] == classes.to(labels.device)[None]
    signs = torch.where(same, 1.0, -1.0)
    per_class = len(texts) / len(classes.unique())
    return -functional.logsigmoid(signs * logits).sum() / len(labels) / per_class

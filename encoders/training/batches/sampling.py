"""Samplers: the batches of an epoch, as lists of rows."""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from encoders.training.recipe import Sampler
from retrieval.errors import BadInput

Batches = list[Tensor]
"""List of (batch,) int64: rows of the training set."""


def batches(sampler: Sampler, labels: Tensor, generator: Generator) -> Batches:
    """Return the batches of one epoch over images with these labels (n,); all have one size.

    Images that do not fill a batch at the end of an epoch are left out of it.
    """
    return _SAMPLERS[sampler.name](sampler, labels, generator)


def check_sampler(sampler: Sampler, labels: Tensor, names: tuple[str, ...]) -> None:
    """Raise BadInput for data that cannot fill a batch, or with a class that is too small."""
    if sampler.batch > len(labels):
        raise BadInput(
            f"sampler.batch is {sampler.batch}, and there are only {len(labels):,} images; "
            "set it lower"
        )
    need = {"shuffled": 1, "balanced": sampler.per_class, "pairs": 2}[sampler.name]
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    for name, count in zip(names, counts, strict=True):
        if count < need:
            raise BadInput(
                f"class '{name}' has {count} images, sampler {sampler.name} needs {need} of each; "
                "leave the class out with data.classes, or take another sampler"
            )
    if sampler.name == "balanced":
        if sampler.batch % sampler.per_class:
            raise BadInput(
                f"a batch of {sampler.batch} cannot hold {sampler.per_class} images of each of "
                "its classes; make sampler.batch a multiple of sampler.per_class"
            )
        if sampler.batch // sampler.per_class > len(names):
            raise BadInput(
                f"a batch of {sampler.batch} with {sampler.per_class} images of a class needs "
                f"{sampler.batch // sampler.per_class} classes, there are {len(names)}; "
                "set sampler.per_class higher, or sampler.batch lower"
            )
    if sampler.name == "pairs" and (len(names) < 2 or sampler.batch % 4):
        raise BadInput(
            f"the sampler pairs needs two classes and a batch that is a multiple of 4; there are "
            f"{len(names)} and {sampler.batch}; change data.classes or sampler.batch"
        )


def _shuffled(sampler: Sampler, labels: Tensor, generator: Generator) -> Batches:
    order = torch.randperm(len(labels), generator=generator)
    return _whole(order, sampler.batch)


def _balanced(sampler: Sampler, labels: Tensor, generator: Generator) -> Batches:
    """Return batches with `per_class` images of each of batch / per_class classes.

    Each class is shuffled and cut into groups of `per_class`. Batches take groups of different
    classes until too few classes have groups left.
    """
    groups = [
        [*torch.split(rows[torch.randperm(len(rows), generator=generator)], sampler.per_class)]
        for rows in (torch.nonzero(labels == label).squeeze(1) for label in labels.unique())
    ]
    groups = [[group for group in of if len(group) == sampler.per_class] for of in groups]
    classes = sampler.batch // sampler.per_class
    result: Batches = []
    while True:
        # Classes with the most groups left go first, in random order among equals.
        chance = torch.rand(len(groups), generator=generator).tolist()
        fullest = sorted(range(len(groups)), key=lambda i: (-len(groups[i]), chance[i]))[:classes]
        if not groups[fullest[-1]]:
            return result
        result.append(torch.cat([groups[i].pop() for i in fullest]))


def _pairs(sampler: Sampler, labels: Tensor, generator: Generator) -> Batches:
    """Return batches of [first images, second images]; half of the pairs share a class.

    Each image is the first of one pair in an epoch.
    """
    first = torch.randperm(len(labels), generator=generator)
    alike = torch.arange(len(labels)) % 2 == 0
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))  # position of a row in the sorted order
    own = labels[first]
    size, start = counts[own], starts[own]
    chance = torch.rand(len(first), dtype=torch.float64, generator=generator)
    # A partner of the same class: another position in the class, by a shift of 1 to size - 1.
    within = (place[first] - start + 1 + (chance * (size - 1)).long()) % size
    # A partner of another class: a position among all, skipping the class's own range.
    outside = (chance * (len(labels) - size)).long()
    outside = outside + torch.where(outside >= start, size, 0)
    second = order[torch.where(alike, start + within, outside)]
    half = sampler.batch // 2
    return [torch.cat(pair) for pair in zip(_whole(first, half), _whole(second, half), strict=True)]


def _whole(rows: Tensor, size: int) -> Batches:
    return [part for part in torch.split(rows, size) if len(part) == size]


_SAMPLERS: Mapping[str, Callable[[Sampler, Tensor, Generator], Batches]] = {
    "shuffled": _shuffled,
    "balanced": _balanced,
    "pairs": _pairs,
}

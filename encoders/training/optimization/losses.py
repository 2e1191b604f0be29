"""Losses and miners that a recipe may name.

Most are from pytorch-metric-learning (Musgrave et al., arXiv:2008.09164), under the names of their
papers. Each takes embeddings (n, dim), labels (n,), and the indices of pairs or triplets if a miner
or a sampler of pairs selected them.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor, nn
from torch.nn import functional

from encoders.training.recipe import Loss, Miner
from retrieval.errors import BadInput, UnknownName

Indices = tuple[Tensor, ...]
"""Indices of pairs (anchors, positives, anchors, negatives), or of triplets (3 tensors)."""


class SquaredContrastive(losses.ContrastiveLoss):  # type: ignore[misc]
    """Half the squared distance of alike pairs, half the squared shortfall of others.

    Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping (2006),
    equation 4: ½·d² for a positive pair, ½·max(0, margin - d)² for a negative one, d Euclidean.
    The loss is the sum of the means over positive and over negative pairs, zeros included.
    pytorch-metric-learning has the form without squares, here `linear-contrastive`.
    """

    def __init__(self, margin: float = 1.0, **kwargs: Any) -> None:
        super().__init__(pos_margin=0.0, neg_margin=margin, **kwargs)
        if self.distance.is_inverted:
            raise ValueError(
                "contrastive needs a distance, and cosines are larger for nearer vectors"
            )

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices: Any, others: Any, other_labels: Any
    ) -> Any:
        # The library's version fails on a batch of one pair.
        pairs = loss_and_miner_utils.convert_to_pairs(indices, labels, other_labels)
        return self.pair_based_loss(self.distance(embeddings, others), pairs)

    def pos_calc(self, distance: Tensor, margin: float) -> Tensor:
        return distance.square() / 2

    def neg_calc(self, distance: Tensor, margin: float) -> Tensor:
        return functional.relu(margin - distance).square() / 2

    def get_default_distance(self) -> Any:
        return distances.LpDistance(normalize_embeddings=False)

    def get_default_reducer(self) -> Any:
        return reducers.MeanReducer()


class NormalizedSoftmax(losses.NormalizedSoftmaxLoss):  # type: ignore[misc]
    """Cross-entropy over cosines / temperature to one proxy per class, with label smoothing.

    Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, arXiv:1811.12649.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        temperature: float = 0.05,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, temperature, **kwargs)
        self.cross_entropy = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)


LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "contrastive": SquaredContrastive,
    "linear-contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletMarginLoss,
    "supervised-contrastive": losses.SupConLoss,
    "nt-xent": losses.NTXentLoss,
    "n-pair": losses.NPairsLoss,
    "angular": losses.AngularLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "circle": losses.CircleLoss,
    "margin": losses.MarginLoss,
    "lifted-structure": losses.GeneralizedLiftedStructureLoss,
    "nca": losses.NCALoss,
    "fast-ap": losses.FastAPLoss,
    "smooth-ap": losses.SmoothAPLoss,
    "proxy-anchor": losses.ProxyAnchorLoss,
    "proxy-nca": losses.ProxyNCALoss,
    "soft-triple": losses.SoftTripleLoss,
    "normalised-softmax": NormalizedSoftmax,
    "cosface": losses.CosFaceLoss,
    "arcface": losses.ArcFaceLoss,
    "sub-center-arcface": losses.SubCenterArcFaceLoss,
}
MINERS: Mapping[str, tuple[Callable[..., nn.Module], dict[str, object]]] = {
    "semi-hard": (miners.TripletMarginMiner, {"type_of_triplets": "semihard"}),
    "hard": (miners.TripletMarginMiner, {"type_of_triplets": "hard"}),
    "batch-hard": (miners.BatchHardMiner, {}),
    "multi-similarity": (miners.MultiSimilarityMiner, {}),
    "angular": (miners.AngularMiner, {}),
    "pair-margin": (miners.PairMarginMiner, {}),
    "distance-weighted": (miners.DistanceWeightedMiner, {}),
}
DISTANCES: Mapping[str, Callable[[], nn.Module]] = {
    "cosine": distances.CosineSimilarity,
    "euclidean": lambda: distances.LpDistance(normalize_embeddings=False),
    "unit-euclidean": distances.LpDistance,
}
OURS_AND_THEIRS = ("encoders.", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners")
RECONSTRUCTION = "reconstruction"  # mean squared error of drawings
CAPTIONS = "captions"  # see `encoders.training.optimization.captions`
OF_NETWORKS = (RECONSTRUCTION, CAPTIONS)
"""Losses of what only some networks do."""


class Term(nn.Module):
    """One term of a recipe's loss, with its weight and its miner."""

    def __init__(self, settings: Loss, classes: int, dim: int) -> None:
        """Build the loss and its miner.

        Raises UnknownName for an unknown loss, miner or option, BadInput for a wrong value.
        """
        super().__init__()
        self.settings = settings
        self.classes = classes
        self.loss = _loss(settings, classes, dim)
        self.miner = None if settings.miner is None else _miner(settings)

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: Indices | None) -> Tensor:
        """Return the weighted loss of embeddings (n, dim) with labels (n,).

        pairs: those of the sampler, for losses without a miner.
        """
        chosen = pairs if self.miner is None else self.miner(embeddings, labels)
        value: Tensor = self.loss(embeddings, labels, chosen)
        return self.settings.weight * value

    def proxies(self) -> Tensor | None:
        """Return the class proxies (classes, dim), or None for a loss without one per class."""
        if self.settings.labels != "class":
            return None
        for name, transposed in (("W", True), ("proxies", False)):
            found = getattr(self.loss, name, None)
            if isinstance(found, Tensor):
                proxies = found.detach().T if transposed else found.detach()
                if len(proxies) == self.classes:
                    return proxies
        return None


def check_loss(settings: Loss, in_pairs: bool) -> None:
    """Raise UnknownName or BadInput for a loss that cannot be built or fails on a small batch.

    in_pairs: batches hold pairs, from which a loss of triplets learns nothing.
    """
    if settings.name in OF_NETWORKS:
        _check_weight_only(settings)
        return
    generator = torch.Generator().manual_seed(0)
    embeddings = functional.normalize(torch.randn(16, 8, generator=generator), dim=1)
    embeddings.requires_grad_()
    labels = torch.tensor([0, 1] * 4 + [0, 0, 1, 1] * 2)
    term = Term(settings, classes=2, dim=8)
    options = dict(settings.options) | (dict(settings.miner.options) if settings.miner else {})
    pairs = pairs_of(labels) if in_pairs and settings.miner is None else None
    try:
        loss = term(embeddings, labels, pairs)
        value = loss.item()
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise BadInput(
            f"loss {settings.name} fails with {options} ({error}); change them"
        ) from None
    if not math.isfinite(value):
        raise BadInput(f"loss {settings.name} is {value} with {options}; change them")
    if pairs is None:
        return
    (gradient,) = torch.autograd.grad(loss, embeddings, allow_unused=True)
    if gradient is None or not gradient.any():
        raise BadInput(
            f"loss {settings.name} learns nothing from pairs, since it compares an image with a "
            "similar and a dissimilar one; give it a miner, or take another sampler"
        )


def _check_weight_only(settings: Loss) -> None:
    for option in settings.options:
        raise UnknownName(f"option of loss {settings.name}", option, ["weight"])
    plain = Loss(settings.name, settings.weight)
    for name in ("labels", "distance", "miner"):
        if getattr(settings, name) != getattr(plain, name):
            raise BadInput(f"loss {settings.name} takes a weight only; remove {name}")


def has_classes(name: str) -> bool:
    """Return whether the loss has parameters for each class."""
    return {"num_classes", "embedding_size"} <= _parameters(LOSSES[name])


def _loss(settings: Loss, classes: int, dim: int) -> nn.Module:
    if settings.name not in LOSSES:
        raise UnknownName("loss", settings.name, (*LOSSES, *OF_NETWORKS))
    make = LOSSES[settings.name]
    given: dict[str, object] = {}
    if has_classes(settings.name):
        given |= {"num_classes": classes, "embedding_size": dim}
    if settings.distance is not None:
        given["distance"] = DISTANCES[settings.distance]()
    own_keys = {f.name for f in fields(Loss)} - {"options"}
    return _made(f"loss {settings.name}", make, given, settings.options, own_keys)


def _miner(loss: Loss) -> nn.Module:
    settings = cast(Miner, loss.miner)
    if settings.name not in MINERS:
        raise UnknownName("miner", settings.name, MINERS)
    make, given = MINERS[settings.name]
    if loss.distance is not None:
        given = given | {"distance": DISTANCES[loss.distance]()}
    return _made(f"miner {settings.name}", make, given, settings.options, {"name"})


def _made(
    what: str,
    make: Callable[..., nn.Module],
    given: dict[str, object],
    options: Mapping[str, Any],
    own_keys: set[str],
) -> nn.Module:
    """Build a loss or miner. own_keys: its keys in a recipe besides the library's options."""
    known = _parameters(make) - given.keys() - {"distance"}
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {what}", option, known | own_keys)
    try:
        return make(**given, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(f"{what} does not take {dict(options)} ({error}); change them") from None


def _parameters(make: Callable[..., nn.Module]) -> set[str]:
    """Return the names of the constructor's parameters, its ancestors' included."""
    family = [c for c in getattr(make, "__mro__", ()) if c.__module__.startswith(OURS_AND_THEIRS)]
    return {
        name
        for ancestor in family
        if "__init__" in vars(ancestor)
        for name, parameter in inspect.signature(ancestor).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        or parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def pairs_of(labels: Tensor) -> Indices:
    """Return the pairs of a batch: image i of the first half with image i of the second.

    Returns (anchors, positives, anchors, negatives), for the losses.
    """
    half = len(labels) // 2
    first = torch.arange(half, device=labels.device)
    alike = labels[:half] == labels[half : 2 * half]
    return first[alike], first[alike] + half, first[~alike], first[~alike] + half

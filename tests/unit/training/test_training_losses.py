"""Losses and miners by name, against numpy written out."""

import math

import numpy as np
import pytest
import torch

from encoders.training.optimization.losses import LOSSES, MINERS, Term, check_loss, pairs_of
from encoders.training.recipe import Loss, Miner
from retrieval.errors import BadInput, UnknownName

X = [0.01, 0.05, -0.07, -0.023, 2.6, 0.012, 0.548, 0.79, -0.2]
Y = [0.01, -0.05, -0.047, 0.023, 2.4, -0.02, 0.0548, 0.7, -0.2]


def unit_vectors(n: int, dim: int) -> torch.Tensor:
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(vectors, dim=1)


def value(loss: Loss, vectors: torch.Tensor, labels: list[int], pairs: bool = False) -> float:
    term = Term(loss, classes=max(labels) + 1, dim=vectors.shape[1])
    numbers = torch.tensor(labels)
    result: float = term(vectors, numbers, pairs_of(numbers) if pairs else None).item()
    return result


@pytest.mark.parametrize(("labels", "published"), [([1, 1], 0.15251), ([0, 1], 0.10023)])
def test_contrastive_loss_is_the_published_formula(labels: list[int], published: float) -> None:
    distance = np.linalg.norm(np.subtract(X, Y))
    alike = labels[0] == labels[1]
    written_out = 0.5 * (distance**2 if alike else max(0, 1 - distance) ** 2)
    met = value(Loss("contrastive", options={"margin": 1.0}), torch.tensor([X, Y]), labels, True)
    assert met == pytest.approx(written_out, rel=1e-5)
    assert met == pytest.approx(published, abs=5e-6)


def test_contrastive_loss_averages_each_kind_of_pairs() -> None:
    vectors = torch.tensor([[0.0, 0], [0, 0], [5, 0], [0.3, 0], [0.4, 0], [0, 0.2]])
    # Pairs (0, 3) alike at 0.3, (1, 4) other at 0.4, (2, 5) other and far beyond the margin.
    met = value(Loss("contrastive"), vectors, [0, 1, 2, 0, 0, 0], pairs=True)
    assert met == pytest.approx(0.3**2 / 2 + (0.6**2 / 2 + 0) / 2, rel=1e-5)


def test_supervised_contrastive_is_equation_2() -> None:
    """Khosla et al., arXiv:2004.11362, L_out."""
    vectors, labels = unit_vectors(6, 3), [0, 0, 1, 1, 1, 0]
    z = vectors.double().numpy() @ vectors.double().numpy().T / 0.1
    losses = []
    for i, label in enumerate(labels):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if labels[j] == label]
        total = math.log(sum(math.exp(z[i, a]) for a in others))
        losses.append(-sum(z[i, p] - total for p in positives) / len(positives))
    met = value(Loss("supervised-contrastive", options={"temperature": 0.1}), vectors, labels)
    assert met == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_normalized_softmax_is_smoothed_cross_entropy_of_cosines(smoothing: float) -> None:
    options = {"temperature": 0.125, "smoothing": smoothing}
    term = Term(Loss("normalised-softmax", weight=0.5, options=options), classes=4, dim=3)
    vectors, labels = unit_vectors(5, 3), [0, 3, 1, 2, 2]
    proxies = term.proxies()
    assert proxies is not None
    assert proxies.shape == (4, 3)
    unit = proxies.numpy() / np.linalg.norm(proxies, axis=1, keepdims=True)
    logits = 8 * vectors.numpy() @ unit.T
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.full((5, 4), smoothing / 4)
    wanted[range(5), labels] += 1 - smoothing
    expected = 0.5 * np.mean(-(wanted * log_shares).sum(1))
    assert term(vectors, torch.tensor(labels), None).item() == pytest.approx(expected, rel=1e-5)


def test_supervised_contrastive_with_image_labels_equals_nt_xent() -> None:
    """Chen et al., arXiv:2002.05709, equation 1."""
    vectors = unit_vectors(8, 3)
    z = vectors.double().numpy()
    exps = np.exp(z @ z.T / 0.5)
    losses = [-np.log(exps[i, (i + 4) % 8] / (exps[i].sum() - exps[i, i])) for i in range(8)]
    for name in ("nt-xent", "supervised-contrastive"):
        loss = Loss(name, options={"temperature": 0.5})
        met = value(loss, vectors, [0, 1, 2, 3, 0, 1, 2, 3])
        assert met == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_reduces_every_loss(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(24) % 3
    vectors = torch.nn.Parameter(torch.randn(24, 8))
    term = Term(Loss(name), classes=3, dim=8)
    optimizer = torch.optim.Adam([vectors, *term.parameters()], lr=0.02)
    losses = []
    for _ in range(40):
        loss = term(torch.nn.functional.normalize(vectors, dim=1), labels, None)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_serves_a_triplet_or_pair_loss(name: str) -> None:
    torch.manual_seed(0)
    vectors = torch.nn.Parameter(unit_vectors(24, 8))
    loss = "triplet" if name != "pair-margin" else "contrastive"
    term = Term(Loss(loss, miner=Miner(name)), classes=3, dim=8)
    term(vectors, torch.arange(24) % 3, None).backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0


def test_semi_hard_takes_negatives_beyond_the_positive_and_within_the_margin() -> None:
    # Anchor at 0, positive at 0.1; negatives at 0.05 (too hard), 0.25 (semi-hard), 1 (too easy).
    vectors = torch.tensor([[0.0], [0.1], [0.05], [0.25], [1.0]])
    miner = Miner("semi-hard", options={"margin": 0.2})
    term = Term(Loss("triplet", distance="euclidean", miner=miner), classes=2, dim=1)
    assert term.miner is not None
    anchors, positives, negatives = term.miner(vectors, torch.tensor([0, 0, 1, 1, 1]))
    chosen = set(zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True))
    assert {t for t in chosen if t[0] == 0} == {(0, 1, 3)}


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    vectors = torch.tensor([[0.0], [0.1], [0.6], [0.3], [2.0]])
    miner = Miner("batch-hard")
    term = Term(Loss("triplet", distance="euclidean", miner=miner), classes=2, dim=1)
    assert term.miner is not None
    anchors, positives, negatives = term.miner(vectors, torch.tensor([0, 0, 0, 1, 1]))
    chosen = set(zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True))
    assert (0, 2, 3) in chosen
    assert len(chosen) == 5


def test_pairs_join_the_two_halves_of_a_batch() -> None:
    anchors, positives, others, negatives = pairs_of(torch.tensor([0, 1, 2, 0, 2, 2]))
    assert (anchors.tolist(), positives.tolist()) == ([0, 2], [3, 5])
    assert (others.tolist(), negatives.tolist()) == ([1], [4])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Loss("contrastiv"), "unknown loss 'contrastiv'; did you mean 'contrastive'?"),
        (Loss("triplet", miner=Miner("semihard")), "unknown miner 'semihard'; did you mean 'semi"),
        (Loss("triplet", options={"margn": 1}), "unknown option of loss triplet 'margn'; did you"),
        (
            Loss("triplet", options={"wieght": 1}),
            "unknown option of loss triplet 'wieght'; did you mean 'weight'?",
        ),
        (
            Loss("reconstruction", options={"wieght": 1}),
            "unknown option of loss reconstruction 'wieght'; did you mean 'weight'?",
        ),
        (
            Loss("triplet", miner=Miner("hard", options={"margn": 1})),
            "unknown option of miner hard 'margn'; did you mean 'margin'?",
        ),
    ],
)
def test_unknown_names_suggest_the_nearest(loss: Loss, said: str) -> None:
    with pytest.raises(UnknownName) as raised:
        check_loss(loss, in_pairs=False)
    assert str(raised.value).startswith(said)


def test_reconstruction_takes_only_a_weight() -> None:
    check_loss(Loss("reconstruction", weight=2), in_pairs=True)
    with pytest.raises(BadInput, match="takes a weight only; remove labels"):
        check_loss(Loss("reconstruction", labels="image"), in_pairs=False)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_learns_from_pairs_or_is_refused(name: str) -> None:
    # To these an image counts with one that is alike and one that is not, which pairs don't have.
    if name not in {"triplet", "supervised-contrastive", "nt-xent", "circle", "margin"}:
        check_loss(Loss(name), in_pairs=True)
        return
    with pytest.raises(BadInput, match="learns nothing from pairs"):
        check_loss(Loss(name), in_pairs=True)
    check_loss(Loss(name, miner=Miner("semi-hard")), in_pairs=True)

"""Composition of batches."""

from collections import Counter

import pytest
import torch

from encoders.training.batches.sampling import batches, check_sampler
from encoders.training.recipe import Sampler
from retrieval.errors import BadInput

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 23)
NAMES = ("cat", "dog", "frog")


def drawn(sampler: Sampler, seed: int = 0) -> list[torch.Tensor]:
    return batches(sampler, LABELS, torch.Generator().manual_seed(seed))


def test_shuffled_shows_every_image_once_in_another_order() -> None:
    parts = drawn(Sampler(batch=25))
    rows = torch.cat(parts).tolist()
    assert [len(part) for part in parts] == [25] * 4  # the last 3 wait for another epoch
    assert len(set(rows)) == 100
    assert rows != sorted(rows)
    assert rows != torch.cat(drawn(Sampler(batch=25), seed=1)).tolist()
    assert rows == torch.cat(drawn(Sampler(batch=25))).tolist()


def test_balanced_batches_have_equal_numbers_of_each_class() -> None:
    parts = drawn(Sampler("balanced", batch=12, per_class=4))
    assert len(parts) >= 5
    for part in parts:
        assert Counter(LABELS[part].tolist()) == {0: 4, 1: 4, 2: 4}
        assert len(set(part.tolist())) == 12
    assert len(set(torch.cat(parts).tolist())) == 12 * len(parts)


def test_balanced_batches_of_some_classes_use_all_classes() -> None:
    parts = drawn(Sampler("balanced", batch=10, per_class=5))
    met = Counter(label for part in parts for label in LABELS[part].tolist())
    assert met.keys() == {0, 1, 2}
    assert all(len(set(LABELS[part].tolist())) == 2 for part in parts)


def test_half_of_the_pairs_share_a_class() -> None:
    parts = drawn(Sampler("pairs", batch=20))
    assert len(parts) == 10
    first = torch.cat([part[:10] for part in parts])
    second = torch.cat([part[10:] for part in parts])
    assert len(set(first.tolist())) == 100  # each image is the first of one pair at most
    assert not torch.any(first == second)
    alike = LABELS[first] == LABELS[second]
    assert 48 <= alike.sum() <= 52
    partners = Counter(LABELS[second[~alike]].tolist())
    assert partners.keys() == {0, 1, 2}


def test_partners_are_drawn_evenly() -> None:
    met: Counter[int] = Counter()
    for seed in range(200):
        for part in drawn(Sampler("pairs", batch=100), seed):
            met.update(
                second
                for first, second in zip(part[:50].tolist(), part[50:].tolist(), strict=True)
                if LABELS[first] == LABELS[second] == 1
            )
    assert met.keys() == set(range(50, 80))
    assert max(met.values()) < 2 * min(met.values())


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (Sampler(batch=104), "sampler.batch is 104, and there are only 103 images"),
        (Sampler("balanced", batch=96, per_class=24), "class 'frog' has 23 images, sampler balan"),
        (Sampler("balanced", batch=10, per_class=4), "cannot hold 4 images of each"),
        (Sampler("balanced", batch=20, per_class=4), "needs 5 classes, there are 3"),
        (Sampler("pairs", batch=18), "a batch that is a multiple of 4"),
    ],
)
def test_batches_that_the_data_cannot_fill_are_refused(sampler: Sampler, said: str) -> None:
    with pytest.raises(BadInput) as raised:
        check_sampler(sampler, LABELS, NAMES)
    assert said in str(raised.value)


def test_a_class_with_one_image_has_no_pair() -> None:
    with pytest.raises(BadInput, match="class 'dog' has 1 images, sampler pairs needs 2"):
        check_sampler(Sampler("pairs", batch=4), torch.tensor([0, 0, 0, 1]), ("cat", "dog"))

"""Who asks whom in each protocol, on a small pair of splits."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import Protocol, read_draw, sides_of

CLASSES = ("cat", "dog", "emu")


def split(name: str, of_each: int, unlabelled: int = 0) -> Labelled:
    labels = [*(label for label in CLASSES for _ in range(of_each)), *[None] * unlabelled]
    vectors = np.random.default_rng(0).normal(size=(len(labels), 2)).astype(np.float32)
    return Labelled(vectors, [f"{name}/{i}" for i in range(len(labels))], labels)


TEST, TRAIN = split("test", 120, unlabelled=2), split("train", 600)
NONE = np.zeros(len(TRAIN), bool)


def ids(images: Labelled) -> set[str]:
    return {str(name) for name in images.ids}


def test_official_and_unseen_draw_nothing() -> None:
    official = sides_of(Protocol.OFFICIAL, TEST, TRAIN, NONE)
    assert (official.queries, official.database) == (TEST, TRAIN)
    unseen = sides_of(Protocol.UNSEEN, TEST, TRAIN, NONE)
    assert (unseen.queries, unseen.database) == (TEST, TEST)
    assert not official.protocol.draws
    assert not unseen.protocol.draws


def test_hashing_59k_asks_a_hundred_of_each_class_of_all_others() -> None:
    sides = sides_of(Protocol.HASHING_59K, TEST, TRAIN, NONE)
    assert sides.protocol.draws
    assert [list(sides.queries.labels).count(name) for name in CLASSES] == [100] * 3
    assert ids(sides.queries) < ids(TEST)
    assert ids(sides.database) == (ids(TEST) | ids(TRAIN)) - ids(sides.queries)
    assert len(sides.database) == len(TEST) + len(TRAIN) - 300
    assert sides.left_out == []
    names = [*TEST.ids, *TRAIN.ids]
    label = dict(zip(names, [*TEST.labels, *TRAIN.labels], strict=True))
    vector = dict(zip(names, [*TEST.vectors, *TRAIN.vectors], strict=True))
    for side in (sides.queries, sides.database):
        assert [label[name] for name in side.ids] == list(side.labels)
        assert np.array_equal([vector[name] for name in side.ids], side.vectors)


def test_hashing_54k_leaves_out_what_was_trained_on() -> None:
    seen = NONE.copy()
    seen[[*range(500), *range(600, 1100), *range(1300, 1800)]] = True
    sides = sides_of(Protocol.HASHING_54K, TEST, TRAIN, seen)
    assert sides.left_out == [f"train/{i}" for i in np.flatnonzero(seen)]
    assert not ids(sides.database) & set(sides.left_out)
    assert len(sides.database) == len(TEST) + len(TRAIN) - 300 - 1500
    # Queries do not depend on the training images, so that encoders can be compared.
    other = sides_of(Protocol.HASHING_54K, TEST, TRAIN, NONE)
    assert ids(other.queries) == ids(sides.queries)
    # For an encoder that was trained on none, as many are drawn.
    labels = dict(zip(TRAIN.ids, TRAIN.labels, strict=True))
    drawn = [labels[name] for name in other.left_out]
    assert [drawn.count(name) for name in CLASSES] == [500] * 3


def test_draws_follow_from_the_seed() -> None:
    first, again, another = (
        sides_of(Protocol.HASHING_59K, TEST, TRAIN, NONE, seed) for seed in (1, 1, 2)
    )
    assert list(first.queries.ids) == list(again.queries.ids)
    assert ids(first.queries) != ids(another.queries)


def test_a_draw_is_kept_and_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "draws" / "draw.json"
    sides = sides_of(Protocol.HASHING_54K, TEST, TRAIN, NONE, seed=3)
    sides.write_draw(file)
    again = read_draw(file, Protocol.HASHING_54K, TEST, TRAIN)
    assert list(again.queries.ids) == list(sides.queries.ids)
    assert list(again.database.ids) == list(sides.database.ids)
    assert (again.left_out, again.seed) == (sides.left_out, 3)
    with pytest.raises(
        Mismatch, match="is a draw for protocol hashing-54k, not hashing-59k; name another"
    ):
        read_draw(file, Protocol.HASHING_59K, TEST, TRAIN)
    with pytest.raises(Mismatch, match=r"image 'test/.*' of the draw .* is not among"):
        read_draw(file, Protocol.HASHING_54K, TRAIN, TRAIN)
    (tmp_path / "other.json").write_text('{"format": "retr-index", "version": 1}')
    with pytest.raises(BadData, match="is not of the format retr-draw"):
        read_draw(tmp_path / "other.json", Protocol.HASHING_54K, TEST, TRAIN)
    file.write_text('{"format": "retr-draw", "version": 1, "protocol": "hashing-54k"}')
    with pytest.raises(BadData, match="lacks queries, left_out or seed"):
        read_draw(file, Protocol.HASHING_54K, TEST, TRAIN)


def test_what_cannot_be_drawn_is_refused() -> None:
    few = split("few", 99)
    with pytest.raises(BadInput, match=r"class 'cat' has 99 images, .* draws 100 queries of each"):
        sides_of(Protocol.HASHING_59K, few, TRAIN, NONE)
    with pytest.raises(BadInput, match=r"class 'cat' has 99 images, .* draws 500 training images"):
        sides_of(Protocol.HASHING_54K, TEST, few, np.zeros(len(few), bool))
    with pytest.raises(BadInput, match="this one was trained on 1,800 in all; use hashing-59k"):
        sides_of(Protocol.HASHING_54K, TEST, TRAIN, ~NONE)

"""The dual encoder that ships: it finds images by words, and joins pictures with words."""

import numpy as np
import pytest

from encoders.words.small import Words
from retrieval import Labelled, Query, Weights
from retrieval.contracts import Metric
from retrieval.embedding.embed import Embedder
from retrieval.images import load, open_source
from retrieval.quality.evaluation import evaluate
from retrieval.quality.ranking import nearest
from retrieval.quality.words.zero_shot import accuracy
from retrieval.registry import open_encoder

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = {
    "Ankle boot": "ankle boot", "Bag": "bag", "Coat": "coat", "Dress": "dress",
    "Pullover": "pullover", "Sandal": "sandal", "Shirt": "shirt", "Sneaker": "sneaker",
    "T-shirt/top": "T-shirt", "Trouser": "trousers",
}  # fmt: skip
IMAGES = 600


@pytest.fixture(scope="module")
def words() -> Words:
    encoder = open_encoder("words-small", "cpu")
    assert isinstance(encoder, Words)
    return encoder


def images_of(words: Words, data_set: str) -> Labelled:
    items = [*open_source(data_set, "test", limit=IMAGES).items()]
    vectors = words.encode(np.stack([load(item, words.framing) for item in items]))
    return Labelled(vectors, [item.id for item in items], [item.label for item in items])


@pytest.mark.data("cifar10")
def test_a_picture_and_a_word_find_both(words: Words) -> None:
    images = images_of(words, "cifar10")
    kinds = np.array(images.labels)
    trucks = np.flatnonzero(kinds == "truck")[:3]
    [ship] = Embedder.of(words).embed_texts("a photo of a ship")[None]

    def found(weight: float) -> list[str]:
        query = Query(["x"] * 3, "x", weights=Weights(text=weight))
        vector = query.joined(Metric.COSINE, images.vectors[trucks], ship)
        rows = nearest(vector, images.vectors, Metric.COSINE, 33).rows[0]
        return [str(kinds[row]) for row in rows if row not in trucks][:30]

    assert found(0).count("truck") >= 27
    both = found(1)
    assert both.count("truck") + both.count("ship") >= 27
    assert both.count("ship") > found(0.25).count("ship")
    assert found(3).count("ship") >= 27
    assert found(-1).count("ship") == 0


@pytest.mark.data("cifar10")
@pytest.mark.data("fashion-mnist")
@pytest.mark.parametrize(
    ("data_set", "names"), [("cifar10", {name: name for name in CIFAR}), ("fashion-mnist", FASHION)]
)
def test_words_find_their_class(words: Words, data_set: str, names: dict[str, str]) -> None:
    images = images_of(words, data_set)
    texts = [f"look at that {name}, which I saw yesterday" for name in names.values()]
    queries = Labelled(words.encode_text(texts), texts, [*names])
    found = evaluate(queries, images, Metric.COSINE)
    right = accuracy(queries, images, Metric.COSINE)
    assert found.map is not None and found.map > 0.9
    assert right is not None and right.value > 0.86

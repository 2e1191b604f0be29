"""Measure searches in words: `python -m benchmarks.studies.words --help`.

A dual encoder is given images of labelled data sets and captions by rule, in templates that the
recipe `words-small` does not have. The study prints, for each data set, mAP of images by text,
zero-shot accuracy, what templates, weights and combined queries do, and the recall of indices for
queries in words and for images.
"""

import argparse
import json
from collections.abc import Sequence
from typing import cast

import numpy as np

from retrieval.contracts import Encoder, Json, Metric, Prompts, TextEncoder, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.query import Query, Weights
from retrieval.errors import BadInput
from retrieval.images import load, open_source
from retrieval.quality.evaluation import Evaluation, evaluate
from retrieval.quality.labelled import Labelled
from retrieval.quality.metrics import index_recall_at
from retrieval.quality.ranking import distances_of, nearest
from retrieval.quality.words.texts import in_templates
from retrieval.quality.words.zero_shot import Accuracy, accuracy
from retrieval.registry import make_indexer, open_encoder

UNSEEN = (
    "there is a {} in this image",
    "an old snapshot that shows a {}",
    "look at that {}",
    "a {} that I saw yesterday",
    "a colorful image with a {}",
    "a {} in front of a wall",
)
"""Templates that `words-small` was not trained with."""

NAMES: dict[str, dict[str, str]] = {
    "cifar10": {},
    "fashion-mnist": {"T-shirt/top": "T-shirt", "Trouser": "trousers"},
    "mnist": {str(digit): f"digit {digit}" for digit in range(10)},
}
"""The words for a class of each data set, if they are not its label in small letters."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
BACKENDS = ("exact", "ivf", "hnsw", "hnsw-pca", "ivfpq")
BATCH = 1000


def images_of(encoder: Encoder, data_set: str, split: str, limit: int | None) -> Labelled:
    """Return the embedded images of a split."""
    source = open_source(data_set, split, limit=limit)
    items = [*source.items()]
    vectors = [
        encoder.encode(np.stack([load(item, encoder.framing) for item in items[at : at + BATCH]]))
        for at in range(0, len(items), BATCH)
    ]
    ids, labels = [item.id for item in items], [item.label for item in items]
    return Labelled(np.concatenate(vectors), ids, labels)


def words_for(data_set: str, labels: Sequence[str]) -> list[str]:
    """Return the words for each label."""
    return [NAMES[data_set].get(label, label.lower()) for label in labels]


def text_queries(encoder: TextEncoder, data_set: str, labels: Sequence[str]) -> Labelled:
    """Return a caption of each class in each unseen template, as queries."""
    words = words_for(data_set, labels)
    texts = [template.replace("{}", word) for word in words for template in UNSEEN]
    of_text = [label for label in labels for _ in UNSEEN]
    return Labelled(encoder.encode_text(texts), texts, of_text)


def by_text(encoder: TextEncoder, data_set: str, images: Labelled) -> dict[str, Json]:
    """Return mAP and zero-shot accuracy of captions, and of names with and without templates."""
    labels = images.classes()
    captions = text_queries(encoder, data_set, labels)
    found = evaluate(captions, images, Metric.COSINE, (10,))
    each = [
        accuracy(captions.take(np.arange(at, len(captions), len(UNSEEN))), images, Metric.COSINE)
        for at in range(len(UNSEEN))
    ]
    embedder = Embedder.of(encoder)
    words = words_for(data_set, labels)
    alone = Labelled(embedder.embed_texts(words), words, labels)
    templated = in_templates(words, embedder.prompts, embedder.embed_texts, Metric.COSINE)
    unseen = in_templates(words, Prompts(UNSEEN), embedder.embed_texts, Metric.COSINE)
    return {
        "images": len(images),
        "map": _interval(found),
        "precision_at_10": found.precision_at[10],
        "zero_shot": _mean(each),
        "zero_shot_of_all_unseen_templates": _accuracy(Labelled(unseen, words, labels), images),
        "names_alone": _both(alone, images),
        "names_in_the_encoders_templates": _both(Labelled(templated, words, labels), images),
    }


def _interval(found: Evaluation) -> Json:
    return {"mean": found.map, "interval": list(found.intervals["map"])}


def _mean(each: Sequence[Accuracy | None]) -> Json:
    values = [found.value for found in each if found is not None]
    return {"mean": float(np.mean(values)), "least": min(values), "largest": max(values)}


def _accuracy(texts: Labelled, images: Labelled) -> float:
    found = accuracy(texts, images, Metric.COSINE)
    assert found is not None
    return found.value


def _both(texts: Labelled, images: Labelled) -> Json:
    found = evaluate(texts, images, Metric.COSINE, (10,))
    return {"map": found.map, "zero_shot": _accuracy(texts, images)}


def combined(encoder: TextEncoder, data_set: str, images: Labelled, most: int = 3) -> Json:
    """Return what pictures and words together find, and what `not` excludes, by weight.

    For each pair of classes, `most` pictures of the first are joined with the word of the second.
    P@20: the share of the first 20 images that are of either class; of the second alone. For
    `not`, the word of the second is excluded from the mean of both words: the share of the first
    100 images that are of the first class.
    """
    labels = images.classes()
    words = dict(zip(labels, encoder.encode_text(words_for(data_set, labels)), strict=True))
    kinds = np.array(images.labels)
    pairs = [(a, b) for a in labels for b in labels if a != b]
    joined: dict[str, Json] = {}
    without: dict[str, Json] = {}
    for weight in WEIGHTS:
        either, second, first = [], [], []
        for a, b in pairs:
            pictures = images.vectors[kinds == a][:most]
            query = Query([""] * len(pictures), "x", weights=Weights(text=weight))
            found = _first(query, pictures, words[b][None], images, 20 + most)
            rest = [row for row in found if row not in np.flatnonzero(kinds == a)[:most]][:20]
            either.append(np.isin(kinds[rest], (a, b)).mean())
            second.append((kinds[rest] == b).mean())
            excluding = Query(texts=["x", "y"], without="z", weights=Weights(without=weight))
            three = np.stack([words[a], words[b], words[b]])
            first.append((kinds[_first(excluding, three[:0], three, images, 100)] == a).mean())
        joined[str(weight)] = {"either": float(np.mean(either)), "second": float(np.mean(second))}
        without[str(weight)] = float(np.mean(first))
    return {"picture_and_word": joined, "two_words_without_one": without}


def _first(
    query: Query, pictures: Vectors, words: Vectors, images: Labelled, count: int
) -> list[int]:
    vector = query.joined(Metric.COSINE, pictures, words)
    return cast(list[int], nearest(vector, images.vectors, Metric.COSINE, count).rows[0].tolist())


def recalls(encoder: TextEncoder, data_set: str, database: Labelled, asked: Labelled) -> Json:
    """Return recall@10 of indices at their defaults, for images and for queries in words."""
    captions = text_queries(encoder, data_set, database.classes()).vectors
    apart = float(np.linalg.norm(captions.mean(0) - database.vectors.mean(0)))
    found: dict[str, Json] = {"distance_of_the_means": apart}
    for backend in BACKENDS:
        index = make_indexer(backend, {"metric": Metric.COSINE}).build(database.vectors)
        of_kind: dict[str, Json] = {}
        for kind, queries in (("images", asked.vectors[:1000]), ("words", captions)):
            true = nearest(queries, database.vectors, Metric.COSINE, 10)
            rows = index.search(queries, 10).rows
            met = distances_of(queries, database.vectors, rows, Metric.COSINE)
            exact = np.sort(distances_of(queries, database.vectors, true.rows, Metric.COSINE))
            of_kind[kind] = float(index_recall_at(met, exact, 10, Metric.COSINE).mean())
        found[backend] = of_kind
    return found


def main() -> None:
    """Print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="a dual encoder, such as the folder of `words-small`")
    parser.add_argument("--data", action="append", choices=[*NAMES])
    parser.add_argument("--split", default="test", choices=["train", "test"])
    parser.add_argument("--limit", type=int, help="the first N images of each split only")
    parser.add_argument("--more", action="store_true", help="combined queries, and indices")
    given = parser.parse_args()
    encoder = open_encoder(given.encoder)
    if not isinstance(encoder, TextEncoder):
        raise BadInput(f"{given.encoder} takes no words; name another encoder")
    results: dict[str, Json] = {}
    for data_set in given.data or [*NAMES]:
        images = images_of(encoder, data_set, given.split, given.limit)
        found = by_text(encoder, data_set, images)
        if given.more:
            database = images_of(encoder, data_set, "train", given.limit)
            found["combined"] = combined(encoder, data_set, images)
            found["recall_at_10"] = recalls(encoder, data_set, database, images)
        results[data_set] = found
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""Texts as queries, recall of captions, and classes by their names, against plain computations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.toy import Toy
from retrieval import Labelled, open_embeddings
from retrieval.contracts import Metric, Prompts, Vectors
from retrieval.embedding.embed import Embedder
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadInput
from retrieval.images import open_source
from retrieval.quality.significance import bootstrap, bootstrap_of_groups
from retrieval.quality.words.captions import caption_recall
from retrieval.quality.words.labeling import label_by_words
from retrieval.quality.words.texts import TextQueries, in_templates
from retrieval.quality.words.zero_shot import (
    NamedClasses,
    accuracy,
    calibration_error,
    fitted_temperature,
    probabilities,
)
from retrieval.storage.sets.assigned import clear_labels
from retrieval.storage.sets.embeddings import Embeddings


def csv_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "texts.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_texts_are_read_with_what_is_relevant(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'more,text,label\n1,"a dog, brown",dog\n2,un chat noir,cat\n')
    found = TextQueries.read(path)
    assert (found.by, found.texts) == ("label", ["a dog, brown", "un chat noir"])
    assert found.relevant == ["dog", "cat"]
    with_mark = csv_file(tmp_path, "text,id\nsea,a/1.png\n", "utf-8-sig")
    assert TextQueries.read(with_mark).by == "id"
    alone = csv_file(tmp_path, "text\nsea\n")
    assert TextQueries.read(alone, needs_relevant=False).texts == ["sea"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows; give it text,label or text,id"),
        ("text,label\n", "has no rows"),
        ("words,label\nsea,1\n", "has the columns words, label; give it"),
        ("text\nsea\n", "has the columns text; give it"),
        ("text,label,id\nsea,1,2\n", "has the columns text, label, id; give it"),
        ("text,label\nsea,1\n ,2\n", "row 3 has no text; fill it in"),
        ("text,label\nsea,\n", "row 2 has no label; fill it in"),
        ("text,label\nsea\n", "row 2 has no label"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TextQueries.read(csv_file(tmp_path, content))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read .*; give a CSV file in UTF-8"):
        TextQueries.read(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes(b"text,label\n\xe9t\xe9,1\n")
    with pytest.raises(BadInput, match="give a CSV file in UTF-8"):
        TextQueries.read(tmp_path / "latin.csv")


def drawn(seed: int, images: int, captions: int) -> tuple[Vectors, Vectors, list[int]]:
    draw = np.random.default_rng(seed)
    found = draw.integers(-2, 3, (images, 3)).astype(np.float32)  # with many ties
    texts = draw.integers(-2, 3, (captions, 3)).astype(np.float32)
    return found, texts, draw.integers(0, images, captions).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 25))
def test_recall_of_captions(seed: int, images: int, captions: int) -> None:
    vectors, texts, own = drawn(seed, images, captions)
    database = Labelled(vectors, [f"set: {i}.png" for i in range(images)], [None] * images)
    queries = TextQueries("t.csv", "id", ["x"] * captions, [f"é{i}.png" for i in own])
    ids = [f"e\u0301{i}.png" for i in range(images)]  # another form of the same names
    found = caption_recall(queries, texts, database, Metric.EUCLIDEAN, (1, 3), depth=2, ids=ids)

    apart = np.linalg.norm(texts[:, None] - vectors[None], axis=2)
    ranks = [
        sorted(range(images), key=lambda j: (apart[i, j], j)).index(own[i]) for i in range(captions)
    ]
    assert found.text_to_image.recall_at[1] == pytest.approx(np.mean([r < 1 for r in ranks]))
    assert found.text_to_image.recall_at[3] == pytest.approx(np.mean([r < 3 for r in ranks]))
    assert found.text_to_image.median_rank == np.median(np.array(ranks) + 1)
    back = []
    for image in sorted({*own}):
        order = sorted(range(captions), key=lambda i: (apart[i, image], i))
        back.append(next(place for place, i in enumerate(order) if own[i] == image))
    assert found.image_to_text.queries == len(back)
    assert (found.text_to_image.ranked, found.image_to_text.ranked) == (images, captions)
    assert found.image_to_text.recall_at[3] == pytest.approx(np.mean([r < 3 for r in back]))
    for direction in (found.text_to_image, found.image_to_text):
        for k, value in direction.recall_at.items():
            low, high = direction.intervals[k]
            assert low <= value + 1e-9 and value <= high + 1e-9


def test_captions_without_their_image_are_counted() -> None:
    database = Labelled(np.eye(3, dtype=np.float32), ["a", "b", "c"], [None] * 3)
    texts = np.eye(3, dtype=np.float32)
    queries = TextQueries("t.csv", "id", ["x"] * 3, ["a", "gone", "c"])
    found = caption_recall(queries, texts, database, Metric.COSINE)
    assert (found.left_out, found.text_to_image.queries) == (1, 2)
    assert found.text_to_image.recall_at == {1: 1.0, 5: 1.0, 10: 1.0}
    nowhere = TextQueries("t.csv", "id", ["x"], ["gone"])
    with pytest.raises(
        BadInput, match=r"no text of t\.csv has its image .* no id 'gone'; give ids"
    ):
        caption_recall(nowhere, texts[:1], database, Metric.COSINE)


def test_captions_of_an_image_are_drawn_together() -> None:
    group = np.repeat(np.arange(40), 5)
    same = np.repeat(np.arange(40) % 2, 5).astype(float)[:, None]  # alike within an image
    together = np.diff(bootstrap_of_groups(same, group), axis=0)[0, 0]
    apart = np.diff(bootstrap(same), axis=0)[0, 0]
    assert together == pytest.approx(apart * 5**0.5, rel=0.15)
    alone = bootstrap_of_groups(same, np.arange(200))
    np.testing.assert_allclose(alone, bootstrap(same), atol=0.02)


def test_the_vector_of_a_text_in_templates() -> None:
    prompts = Prompts(("{}", "{} lime"))
    found = in_templates(["red"], prompts, Embedder.of(Toy()).embed_texts, Metric.COSINE)
    both = np.array([1, 0, 0]) + np.array([1, 1, 0]) / 2**0.5
    np.testing.assert_allclose(found, [both / np.linalg.norm(both)], atol=1e-6)
    plain = in_templates(["red"], prompts, Embedder.of(Toy()).embed_texts, Metric.EUCLIDEAN)
    np.testing.assert_allclose(plain, [[0.75, 0.25, 0]], atol=1e-6)


def test_zero_shot_accuracy() -> None:
    texts = Labelled(np.eye(3, dtype=np.float32)[[0, 1, 1]], ["x", "y", "z"], ["a", "b", "b"])
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    images = Labelled(vectors, list("01234"), ["a", "b", "a", "a", "other"])
    found = accuracy(texts, images, Metric.COSINE)
    assert found is not None
    assert (found.images, found.classes) == (4, 2), "the last has no text"
    assert found.value == 0.75, "of the tie the first class is taken"
    assert found.per_class == {"a": pytest.approx(2 / 3), "b": 1.0}
    nothing = Labelled(vectors[:1], ["0"], ["z"])
    assert accuracy(texts, nothing, Metric.COSINE) is None


def test_a_fitted_temperature_calibrates() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (4000, 5))
    classes = np.array([draw.choice(5, p=p) for p in probabilities(logits)])
    found = fitted_temperature(3 * logits, classes)
    assert found.value == pytest.approx(3, rel=0.1)
    assert found.error_after is not None and found.error_before is not None
    assert found.error_after < 0.03 < found.error_before
    with pytest.raises(BadInput, match="49 images with labels are too few to calibrate; give"):
        fitted_temperature(logits[:49], classes[:49])


def test_calibration_error() -> None:
    found = np.array([[0.9, 0.1]] * 10 + [[0.35, 0.65]] * 10)
    classes = np.array([0] * 8 + [1] * 2 + [1] * 10)
    assert calibration_error(found, classes) == pytest.approx((0.1 * 10 + 0.35 * 10) / 20)


def test_the_class_of_nothing() -> None:
    prompts = Prompts(scale=10, bias=-5)
    classes = NamedClasses(("a", "none"), np.eye(2, dtype=np.float32), prompts, nothing=1)
    logits = classes.logits(np.array([[1, 0], [0.5, 0], [0, 1]], np.float32))
    np.testing.assert_allclose(logits, [[5, 0], [0, 0], [-5, 0]])
    compared = NamedClasses(("a", "none"), np.eye(2, dtype=np.float32), Prompts(scale=10), 1)
    np.testing.assert_allclose(compared.logits(np.eye(2, dtype=np.float32)), [[10, 0], [0, 10]])


@pytest.fixture
def colors(photos: Path, tmp_path: Path) -> Embeddings:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "embeddings")
    return open_embeddings(tmp_path / "embeddings")


def test_images_are_labelled_by_words(colors: Embeddings) -> None:
    before = colors.rows()["label"].to_pylist()
    found = label_by_words(colors, ["red", "lime", "blue"], Embedder.of(Toy()))
    assert found.counts == {"red": 10, "lime": 10, "blue": 10}
    assert (found.compared, found.agreement) == (20, 1.0), "green is not among the names"
    again = open_embeddings(colors.folder)
    labels = again.rows()["label"].to_pylist()
    assert labels == ["lime" if label == "green" else label for label in before]
    assert again.columns()["label_probability"].to_pylist() == pytest.approx(found.probabilities)
    assert again.assigned()["with"] == ["red", "lime", "blue"]
    sure = label_by_words(again, ["red", "blue"], Embedder.of(Toy()), least=0.9999)
    unsure = sure.classes < 0
    assert unsure.sum() >= 10
    again = open_embeddings(colors.folder)
    labels = again.rows()["label"].to_pylist()
    assert [label is None for label in labels] == unsure.tolist(), "not the folder's label"
    known = again.columns()["label_probability"].to_pylist()
    assert [value is None for value in known] == unsure.tolist()
    clear_labels(colors.folder)
    assert open_embeddings(colors.folder).rows()["label"].to_pylist() == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["red"], "1 class is nothing to choose from; give two or more"),
        (["red", "blue", "red "], "the class 'red' is given twice; leave one out"),
        (["red", " "], "a text is empty"),
        (["none", "red", "Nothing"], "'none' and 'Nothing' both stand for none of the others"),
    ],
)
def test_wrong_classes_are_refused(colors: Embeddings, names: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        label_by_words(colors, names, Embedder.of(Toy()))
    with pytest.raises(BadInput, match=r"the template 'a photo' has no \{\} for the name; add it"):
        label_by_words(colors, ["a", "b"], Embedder.of(Toy()), templates=["a photo"])

"""Training of dual encoders: captions, several sources, the text tower, and its export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.networks import Network
from encoders.training.optimization.captions import caption_loss, captions_of, drawn_captions
from encoders.training.recipe import Also, Captions, Data, Loss, Recipe, read_recipe
from encoders.training.trainer import train
from encoders.words.small import Words
from retrieval.contracts import Metric, Prompted, TextEncoder, Tokenizing
from retrieval.embedding.embed import Embedder
from retrieval.embedding.onnx_cache import ExportFacts, export_folder, keep_export, open_export
from retrieval.errors import BadInput, UnknownName
from retrieval.images import load, open_source
from retrieval.quality.labelled import Labelled
from retrieval.quality.words.zero_shot import accuracy
from retrieval.registry import open_encoder
from retrieval.storage.cards import Card
from retrieval.storage.sets.manifest import EncoderFacts
from retrieval.testing import check_encoder
from tests.training_runs import SMALL

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = replace(
    SMALL,
    encoder="words",
    network={
        "widths": [8, 16, 16],
        "dim": 16,
        "mirror": False,
        "merges": 200,
        "context": 16,
        "text_width": 32,
        "text_layers": 1,
        "text_heads": 2,
    },
    losses=(Loss("captions"),),
    captions=Captions(
        ("{}", "a {}", "the number {}"),
        {str(digit): (name, f"digit {digit}") for digit, name in enumerate(NAMES)},
    ),
    epochs=15,
    data=Data("digits", per_class=40),
    augmentation=replace(SMALL.augmentation, flip="none", translate=1),
    optimizer=replace(SMALL.optimizer, lr=0.06, other_lr=0.01),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "encoder"
    train(WORDS, folder, device="cpu")
    return folder


@pytest.fixture
def encoder(trained: Path) -> Words:
    return Words(str(trained))


def test_words_name_images(encoder: Words) -> None:
    items = [*open_source("digits", "test").items()]
    images = np.stack([load(item, encoder.framing) for item in items])
    found = Labelled(encoder.encode(images), [i.id for i in items], [i.label for i in items])
    unseen = [f"here is the {name}" for name in NAMES]
    texts = Labelled(encoder.encode_text(unseen), unseen, [*map(str, range(10))])
    right = accuracy(texts, found, Metric.COSINE)
    assert right is not None and right.value > 0.4, "chance is 0.1"


def test_the_encoder_keeps_the_contract(trained: Path, encoder: Words) -> None:
    check_encoder(encoder)
    assert isinstance(encoder, TextEncoder) and isinstance(encoder, Tokenizing)
    assert isinstance(encoder, Prompted)
    assert encoder.prompts.templates == WORDS.captions.templates
    assert encoder.prompts.bias is not None and encoder.prompts.scale > 1
    assert open_encoder(str(trained)).fingerprint == encoder.fingerprint
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_text(["x"]), axis=1), 1, atol=1e-5)


def test_a_text_longer_than_the_context_is_cut(encoder: Words) -> None:
    long = "one two three " * 1000
    assert encoder.max_tokens == 16
    assert encoder.count_tokens([long, "one"])[0] > 3000
    again = encoder.encode_text([long + "four", long])
    np.testing.assert_array_equal(again[0], again[1])


def test_the_exported_text_tower_has_the_same_output(encoder: Words) -> None:
    keep_export(encoder)
    facts = ExportFacts.read(export_folder(encoder.fingerprint))
    assert facts.text is not None
    assert open_export(encoder.fingerprint) is not None
    exported = open_export(encoder.fingerprint, text=True)
    assert isinstance(exported, TextEncoder) and isinstance(exported, Tokenizing)
    texts = ["one", "the number two " * 9, "Straße 🚗", ""]
    met, expected = exported.encode_text(texts), encoder.encode_text(texts)
    np.testing.assert_allclose(met, expected, atol=1e-5)
    assert exported.count_tokens(texts) == encoder.count_tokens(texts)
    assert exported.encode_text([]).shape == (0, 16)
    many = exported.encode_text(texts * 40)
    np.testing.assert_allclose(many[-4:], expected, atol=1e-5)
    embedder = Embedder(EncoderFacts.of(encoder))
    np.testing.assert_allclose(embedder.embed_texts(texts[0]), expected[:1], atol=1e-5)
    assert embedder.prompts == encoder.prompts


@pytest.mark.parametrize("file", ["text.onnx", "tokenizer.json"])
def test_a_damaged_text_tower_is_not_used(encoder: Words, file: str) -> None:
    keep_export(encoder)
    path = export_folder(encoder.fingerprint) / file
    path.write_bytes(path.read_bytes()[:-9])
    assert open_export(encoder.fingerprint, text=True) is None
    assert open_export(encoder.fingerprint) is not None, "images do not need it"
    keep_export(encoder)
    assert open_export(encoder.fingerprint, text=True) is not None


def test_a_second_source_adds_its_classes(tmp_path: Path, photos: Path) -> None:
    data = replace(WORDS.data, per_class=30, also=(Also(str(photos)),))
    card = train(replace(WORDS, data=data, epochs=1), tmp_path / "both", device="cpu")
    assert card.classes == (*map(str, range(10)), "blue", "green", "red")
    assert card.training.data["images"] == 330
    seen = card.training.data["also_seen"]
    assert isinstance(seen, list) and str(photos) in str(seen[0])
    assert Card.read(tmp_path / "both").training.recipe["data"] is not None


def test_images_start_from_a_siamese_network(tmp_path: Path) -> None:
    start = replace(SMALL, network={"widths": [8, 16, 16], "dim": 16}, epochs=1)
    train(start, tmp_path / "siamese", device="cpu")
    recipe = replace(
        WORDS,
        start=str(tmp_path / "siamese"),
        epochs=1,
        network={**WORDS.network, "frozen_blocks": 3},
    )
    train(recipe, tmp_path / "words", device="cpu")
    before = open_encoder(str(tmp_path / "siamese")).trained.state_dict()  # type: ignore[attr-defined]
    after = open_encoder(str(tmp_path / "words")).trained.image.state_dict()  # type: ignore[attr-defined]
    for name, tensor in before.items():
        if name.startswith("blocks"):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["neck.weight"], before["neck.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": Captions(("a photo",))}, r"'a photo' has no \{\} for a name; add it"),
        ({"captions": Captions(("{}",), {"12": ("twelve",)})}, "unknown class in captions.names"),
        ({"losses": (Loss("supervised-contrastive"),)}, "learns nothing without the loss captions"),
        ({"losses": (Loss("captions", labels="image"),)}, "loss captions takes a weight only"),
        (
            {"encoder": "siamese", "network": {}},
            "the loss captions needs a text tower, and siamese",
        ),
        ({"data": Data("digits", also=(Also("digits"),))}, "data.also: .* both have"),
    ],
)
def test_wrong_recipes_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    recipe: Recipe = replace(WORDS, **changes)  # type: ignore[arg-type]
    with pytest.raises((BadInput, UnknownName), match=message):
        train(recipe, tmp_path / "encoder", device="cpu")


def test_captions_are_drawn_from_names_and_templates() -> None:
    captions = captions_of(Captions(("{}", "a {}"), {"cat": ("cat", "kitten")}), ("cat", "dog"))
    assert captions == [["cat", "kitten", "a cat", "a kitten"], ["dog", "a dog"]]
    texts, classes = drawn_captions(captions, 3, torch.Generator().manual_seed(0))
    assert classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert {*texts[:3]} <= {*captions[0]} and {*texts[3:]} <= {*captions[1]}


class Given(Network):
    """A network whose logits are the embeddings."""

    def __init__(self) -> None:
        super().__init__(None, 2, 8)

    @property
    def training_dim(self) -> int:
        return 4

    def caption_logits(self, embeddings: torch.Tensor, texts: object) -> torch.Tensor:
        return embeddings


Given.__abstractmethods__ = frozenset()


def test_the_loss_of_captions() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]])
    labels, classes = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1])
    found = caption_loss(Given(), logits, labels, ["x"] * 4, classes)
    signs = np.array([[1, 1, -1, -1], [-1, -1, 1, 1]])
    expected = np.log1p(np.exp(-signs * logits.numpy())).sum() / 2 / 2
    assert found.item() == pytest.approx(expected)


def test_the_recipe_that_ships_has_names_for_all_its_classes() -> None:
    recipe = read_recipe("words-small")
    assert len(recipe.captions.names) == 30
    assert all("{}" in template for template in recipe.captions.templates)

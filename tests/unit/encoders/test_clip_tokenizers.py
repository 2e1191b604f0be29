"""Tokenizers of text towers give the numbers that open_clip's give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from encoders.hub import LocalFolder
from encoders.words.clip import Clip
from encoders.words.hub_tokenizer import open_tokenizer
from encoders.words.tokenizer import Tokenizer
from retrieval.errors import BadInput
from tests.dual_models import CONFIGS, write_config, write_tokenizer

THEIRS = SimpleTokenizer()
OURS = Tokenizer.of_clip()
# Characters that Unicode 14 has; for later ones, libraries differ in what is a letter.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
TEXTS = ["a red car in the snow", "", "Two DOGS, two_dogs", "x" * 500, "ßé 犬 😀 ?", "&amp;"]


@settings(max_examples=200, deadline=None)
@given(st.text(CHARACTERS, max_size=60))
def test_clips_tokenizer_equals_open_clips(text: str) -> None:
    np.testing.assert_array_equal(OURS([text]), THEIRS([text]).numpy())


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("aA1 'sStTlLdDreVm.,<|>&;#xſİK\u0345\u00a0\n\t犬😀é"), max_size=40))
def test_contractions_spaces_and_rare_characters(text: str) -> None:
    np.testing.assert_array_equal(OURS([text]), THEIRS([text]).numpy())


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_ways_of_cleaning(clean: str) -> None:
    theirs = SimpleTokenizer(clean=clean, context_length=12)
    ours = open_tokenizer({"context_length": 12, "tokenizer_kwargs": {"clean": clean}}, None)
    np.testing.assert_array_equal(ours(TEXTS), theirs(TEXTS).numpy())


@pytest.mark.parametrize(
    "text", ["\ud800", "a \udfff b", "&#xD800;", "\x00", "👨‍👩‍👧", "مرحبا", "हिन्दी", "é" * 10_000]
)
def test_odd_texts_have_tokens(text: str) -> None:
    numbers = OURS([text])
    assert numbers.shape == (1, 77)
    assert numbers.max() == 49407


def test_a_long_text_is_cut_and_keeps_its_end() -> None:
    numbers = OURS(["word " * 2000])[0]
    assert (numbers[0], numbers[-1]) == (49406, 49407)
    assert OURS.counts(["word " * 2000]) == [2002]


@pytest.mark.parametrize("texts", ["a text", ["a", 3], [b"a"]])
def test_other_values_are_refused(texts: Any) -> None:
    for call in (OURS, OURS.counts):
        with pytest.raises(BadInput, match="; give a "):
            call(texts)


def bert(folder: Path, **changes: Any) -> Path:
    """Write a tokenizer like BERT's, as CLIPA has it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "car", "in", "the", "snow", "two"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    facts |= {"sep_token": "[SEP]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**facts, **changes}))
    return folder


def assert_equal(folder: Path, **options: Any) -> Tokenizer:
    """Check our tokenizer of the folder against open_clip's."""
    theirs = HFTokenizer(str(folder), context_length=8, **options)
    text = {"context_length": 8, "hf_tokenizer_name": "x", "tokenizer_kwargs": options}
    ours = open_tokenizer(text, LocalFolder(folder))
    np.testing.assert_array_equal(ours(TEXTS), theirs(TEXTS).numpy())
    return ours


def test_separators_are_zeroed(tmp_path: Path) -> None:
    tokenizer = assert_equal(bert(tmp_path), strip_sep_token=True)
    assert tokenizer.zeroed == 3
    assert assert_equal(tmp_path, clean="canonicalize").zeroed is None


@pytest.mark.parametrize("template", [True, False])
def test_tokens_of_start_and_end_are_those_of_the_template(template: bool, tmp_path: Path) -> None:
    path = bert(tmp_path, add_bos_token=False, add_eos_token=True) / "tokenizer.json"
    if not template:
        path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    numbers = assert_equal(tmp_path)(["a car"])[0].tolist()
    assert numbers == ([2, 4, 6, 3, 0, 0, 0, 0] if template else [4, 6, 0, 0, 0, 0, 0, 0])


def test_padding_is_found_or_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, {"clean_up_tokenization_spaces": False})
    assert assert_equal(tmp_path).padding == 1
    write_tokenizer(tmp_path, {"pad_token": {"content": "<unk>"}})
    assert open_tokenizer({}, LocalFolder(tmp_path)).padding == 0
    write_tokenizer(tmp_path, {"padding_side": "left"})
    with pytest.raises(BadInput, match="pads texts on the left, which is not supported; choose"):
        open_tokenizer({}, LocalFolder(tmp_path))


def test_text_towers_of_transformers(tmp_path: Path) -> None:
    facts = {"model_type": "roberta", "vocab_size": 60, "hidden_size": 16, "pad_token_id": 1}
    facts |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    facts |= {"max_position_embeddings": 90, "_name_or_path": "/home/somebody/model"}
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(facts))
    model = {
        "embed_dim": 16,
        "vision_cfg": CONFIGS["CLIP"]["vision_cfg"],
        "text_cfg": {
            "hf_model_name": str(tmp_path),
            "hf_tokenizer_name": str(tmp_path),
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
        },
    }
    write_config(tmp_path, model, {})
    spec = f"local-dir:{tmp_path}"
    theirs = open_clip.create_model(spec, load_weights=False, pretrained_text=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    encoder = Clip(str(tmp_path), "cpu")
    tokens = open_clip.get_tokenizer(spec)(TEXTS)
    np.testing.assert_array_equal(encoder.tokenizer(TEXTS), tokens.numpy())
    with torch.inference_mode():
        expected = theirs.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-5)
    assert str(tmp_path) not in json.dumps(encoder.config)
    assert "somebody" not in json.dumps(encoder.config)

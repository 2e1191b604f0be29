"""Small dual encoders with random weights, as open_clip saves them: one of each kind."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TOKENIZER_OF_SIGLIP = "tiny/tokenizer"
CONFIGS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": TEXT,
    },
    "ResNet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "SigLIP": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 200,
            "hf_tokenizer_name": TOKENIZER_OF_SIGLIP,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "MobileCLIP": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "fastvit_t8",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": None,
            "timm_drop": 0.0,
            "timm_drop_path": 0.0,
        },
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    "CoCa": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_queries": 8,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 20, "width": 16, "heads": 2, "layers": 1},
    },
}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "ResNet": {},
    "SigLIP": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    "MobileCLIP": {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"},
    "CoCa": {},
}


def save_model(kind: str, folder: Path, seed: int = 0, half: bool = False) -> Path:
    """Write a model with random weights into a new folder, as open_clip's `save_for_hf` does."""
    folder.mkdir()
    write_config(folder, CONFIGS[kind], PREPROCESSING[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["logit_scale"] = torch.tensor(3.0)
    if half:
        weights = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
    save_file(weights, folder / "open_clip_model.safetensors")
    if kind == "SigLIP":
        write_tokenizer(folder)
    return folder


def write_config(folder: Path, model: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Write an `open_clip_config.json`."""
    whole = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))


def write_tokenizer(folder: Path, settings: dict[str, Any] | None = None) -> None:
    """Write a small unigram tokenizer like T5's, which ends each text with `</s>`."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    words = ["▁a", "▁red", "▁car", "▁in", "▁the", "▁snow", "▁two", "▁dog", "s", "ing", "▁photo"]
    pieces += [(word, -3.0 - place / 10) for place, word in enumerate(words)]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789éß犬"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    backend.enable_truncation(3)  # some repositories have such settings, which do not count
    backend.enable_padding(pad_id=0, length=5)
    backend.save(str(folder / "tokenizer.json"))
    usual = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**usual, **(settings or {})}))

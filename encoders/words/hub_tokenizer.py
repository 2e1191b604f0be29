"""The tokenizer of a text tower, as its configuration names it.

CLIP's own is in open_clip's wheel. Others are read from the `tokenizer.json` of their repository.
Only where there is none, or where the text tower is a model of transformers, transformers reads it.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from encoders.hub import LocalFolder, Repository
from encoders.words.tokenizer import CLEANING, CLIP_CONTEXT, Tokenizer
from retrieval.errors import BadData, BadInput

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Files that transformers reads a tokenizer from; a repository has some of them.
VOCABULARIES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
OTHER_FILES = ("config.json", "special_tokens_map.json", "added_tokens.json")
USUAL_PADDING = ("[PAD]", "<pad>")


def open_tokenizer(text: Mapping[str, Any], home: LocalFolder | Repository | None) -> Tokenizer:
    """Return the tokenizer of a text tower.

    text: open_clip's `text_cfg`. home: the folder or repository with its files; None for CLIP's
    tokenizer. Raises BadInput for options that are not supported, BadData for damaged files.
    """
    options = dict(text.get("tokenizer_kwargs") or {})
    clean = options.pop("clean", "lower" if home is None else "whitespace")
    strip = options.pop("strip_sep_token", False)
    context = text.get("context_length", CLIP_CONTEXT)
    if text.get("tokenizer_mode"):
        options["tokenizer_mode"] = text["tokenizer_mode"]
    if options:
        raise BadInput(
            f"the tokenizer's options {', '.join(map(str, options))} are not supported; "
            "choose another model"
        )
    if clean not in CLEANING or not isinstance(context, int) or context < 1:
        raise BadData(
            f"a tokenizer cannot have clean '{clean}' and context_length {context}; "
            "save the model again"
        )
    if home is None:
        return Tokenizer.of_clip(context, clean)
    if text.get("hf_model_name") or not (path := home.find(TOKENIZER)):
        backend, padding, separator = _by_transformers(home)
    else:
        backend, padding, separator = _by_tokenizers(path, home.find(SETTINGS))
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, context, clean, padding, zeroed=separator if strip else None)


def check_transformers() -> None:
    """Raise BadInput unless transformers is installed."""
    if importlib.util.find_spec("transformers") is None:
        raise BadInput("this text tower needs transformers; pip install 'retr[words]'")


def check_no_code(path: Path) -> None:
    """Raise BadInput if a configuration names code to run; transformers would ask the user."""
    if "auto_map" in read_settings(path):
        raise BadInput(f"{path} names code to run, which is not loaded; choose another model")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises BadData if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadData(f"cannot read {path} ({_line(error)}); save the tokenizer again") from None
    return found


def _by_tokenizers(path: Path, settings_path: Path | None) -> tuple[Backend, int, int | None]:
    """Return the tokenizer in the file, and the numbers of its padding and its separator."""
    settings = read_settings(settings_path) if settings_path else {}
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise BadData(f"cannot read {path} ({_line(error)}); save the tokenizer again") from None
    if settings.get("padding_side") == "left":
        raise BadInput(f"{path} pads texts on the left, which is not supported; choose another")
    named = _content(settings.get("pad_token"))
    padding = backend.token_to_id(named) if named else None
    if padding is None and backend.padding:
        padding = backend.padding["pad_id"]
    for name in USUAL_PADDING:
        padding = backend.token_to_id(name) if padding is None else padding
    if padding is None:
        raise BadData(f"{path} has no token for padding; save the tokenizer again")
    return backend, padding, backend.token_to_id(_content(settings.get("sep_token")) or "[SEP]")


def _content(token: Any) -> str:
    """Return the text of a token in `tokenizer_config.json`: a string, or an object with it."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def _by_transformers(home: LocalFolder | Repository) -> tuple[Backend, int, int | None]:
    check_transformers()
    from transformers import AutoTokenizer

    settings = home.find(SETTINGS)
    for path in (settings, home.find("config.json")):
        if path is not None:
            check_no_code(path)
    found = [home.find(name) for name in (TOKENIZER, *VOCABULARIES, *OTHER_FILES)]
    folder = next((path.parent for path in (settings, *found) if path), None)
    if folder is None:
        raise BadInput(f"{home} has no {TOKENIZER}; save the tokenizer there")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        return backend, int(tokenizer.pad_token_id), tokenizer.sep_token_id
    except Exception as error:  # from several libraries
        raise BadData(
            f"transformers cannot read the tokenizer in {folder} ({_line(error)}); "
            f"save it again, with {TOKENIZER}"
        ) from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

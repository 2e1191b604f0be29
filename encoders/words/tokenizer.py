"""Tokenizers of text towers, without torch: a search in words waits for this module.

A tokenizer turns text into the token numbers that open_clip's tokenizers make of it. CLIP's is
built from the vocabulary in open_clip's wheel. Others are read from the `tokenizer.json` of their
model.
"""

import gzip
import hashlib
import html
import importlib.util
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from retrieval.contracts import Json
from retrieval.errors import BadData, BadInput
from retrieval.values import shown

Tokens = NDArray[np.int64]
"""(n, context): token numbers, filled up with the number for padding."""

CLIP_CONTEXT = 77
CLIP_MERGES = 49_152 - 256 - 2
START, END = "<start_of_text>", "<end_of_text>"
# open_clip's pattern without regard to case. Its library then drops U+0345, a combining iota.
WORDS = (
    r"'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"
)
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text to token numbers.

    backend: splits a cleaned text into tokens, and adds those of start and end.
    context: maximum number of tokens; a longer text is cut, and keeps its last token.
    clean: `lower`, `canonicalize` (also without punctuation) or `whitespace` (case is kept).
    padding: number after the text. zeroed: number that is replaced by 0, or None.
    """

    backend: Backend
    context: int = CLIP_CONTEXT
    clean: str = "lower"
    padding: int = 0
    zeroed: int | None = None

    @classmethod
    def of_clip(
        cls, context: int = CLIP_CONTEXT, clean: str = "lower", merges: int = CLIP_MERGES
    ) -> Self:
        """Return CLIP's tokenizer, or one that knows only the first merges of its vocabulary.

        With fewer merges, words have more tokens, and the vocabulary has 514 + merges tokens.
        """
        return cls(_clip_backend(merges), context, clean)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the token numbers (n, context) of n texts."""
        numbers = np.full((len(texts), self.context), self.padding, np.int64)
        for row, found in enumerate(self._encoded(texts)):
            kept = found[: self.context]
            if len(found) > self.context:
                kept[-1] = found[-1]
            numbers[row, : len(kept)] = kept
        if self.zeroed is not None:
            numbers[numbers == self.zeroed] = 0
        return numbers

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before it is cut, start and end included."""
        return [len(found) for found in self._encoded(texts)]

    @property
    def vocabulary(self) -> int:
        """Number of tokens that there are."""
        return int(self.backend.get_vocab_size())

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        _check_texts(texts)
        clean = CLEANING[self.clean]
        cleaned = [clean(_repaired(text)) for text in texts]
        return [found.ids for found in self.backend.encode_batch(cleaned)]

    def save(self, path: Path) -> dict[str, Json]:
        """Write the backend to `path`, and return the settings that `read` wants beside it."""
        path.write_text(self.backend.to_str(), encoding="utf-8")
        return {
            "context": self.context,
            "clean": self.clean,
            "padding": self.padding,
            "zeroed": self.zeroed,
        }

    @property
    def sha256(self) -> str:
        """The sha256, in hexadecimal, of the backend and the settings."""
        facts = (self.backend.to_str(), self.context, self.clean, self.padding, self.zeroed)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Json]) -> Self:
        """Return a tokenizer with the backend in the file. Raises BadData if it is damaged."""
        try:
            return cls(Backend.from_file(str(path)), **cast(Any, settings))
        except Exception as error:  # the library raises plain Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadData(f"cannot read the tokenizer {path} ({reason}); write it again") from None


def _check_texts(texts: Sequence[str]) -> None:
    """Raise BadInput unless these are texts; one str would be taken for a list of letters."""
    if isinstance(texts, str):
        raise BadInput(f"the texts are one str, {shown(texts)}; give a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(f"a text is {shown(text)}; give a str")


def _repaired(text: str) -> str:
    """Return the text with broken encodings and HTML entities repaired, as CLIP's authors do."""
    if not (text.isascii() and text.isprintable()):  # else there is nothing to repair
        import ftfy  # a tenth of a second

        text = ftfy.fix_text(text)
    elif "&" in text:
        import ftfy

        text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text)).strip()


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _lowered(text: str) -> str:
    return _spaced(text).lower()


def _canonical(text: str) -> str:
    return _spaced(text.replace("_", " ").translate(NO_PUNCTUATION).lower())


CLEANING: Mapping[str, Callable[[str], str]] = {
    "lower": _lowered,
    "canonicalize": _canonical,
    "whitespace": _spaced,
}


@cache
def _clip_backend(merges: int) -> Backend:
    """Return the byte-pair encoding of CLIP's vocabulary, with its first merges.

    Tokens are numbered as in CLIP: bytes, bytes that end a word, merges, start, end.
    """
    with gzip.open(_vocabulary_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : merges + 1]
    pairs = [(first, second) for first, second in (line.split() for line in lines)]
    letters = _byte_letters()
    names = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, pairs), START, END]
    numbers = {name: number for number, name in enumerate(names)}
    backend = Backend(
        models.BPE(
            vocab=numbers,
            merges=pairs,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            unk_token=END,
        )
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in (START, END)])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, numbers[START]), (END, numbers[END])],
    )
    return backend


def _vocabulary_file() -> Path:
    """Return CLIP's vocabulary in open_clip's wheel, without importing open_clip and torch."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / VOCABULARY


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte in CLIP's vocabulary, in its order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]

"""The encoder of sources for which the user names none."""

from pathlib import Path

import pytest

from encoders.toy import Toy
from retrieval.embedding import default_encoder
from retrieval.embedding.default_encoder import (
    DATA_SET_ENCODER,
    OFFLINE_PHOTO_ENCODER,
    PHOTO_ENCODER,
    WORDS_ENCODER,
    encoder_for,
)
from retrieval.embedding.encode import encode_source
from retrieval.errors import BadInput, RetrError
from retrieval.images import open_source


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of encoders that are opened; the hub cannot be reached."""
    names: list[str] = []

    def opened(name: str, device: str = "auto", words: bool = False) -> Toy:
        names.append(name)
        if name in (PHOTO_ENCODER, WORDS_ENCODER):
            raise RetrError("cannot fetch the weights")
        return Toy()

    monkeypatch.setattr(default_encoder, "open_known", opened)
    return names


def test_photographs_get_the_offline_encoder_without_a_network(
    asked: list[str], photos: Path
) -> None:
    said: list[str] = []
    encoder_for(open_source(str(photos)), None, None, note=said.append)
    assert asked == [PHOTO_ENCODER, OFFLINE_PHOTO_ENCODER]
    assert len(said) == 1
    assert "needs no network" in said[0] and PHOTO_ENCODER in said[0]


def test_searches_in_words_get_an_encoder_that_takes_them_or_none(
    asked: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RetrError, match="cannot fetch the weights"):
        encoder_for(open_source(str(photos)), None, None, words=True)
    assert asked == [WORDS_ENCODER], "an encoder of images only would not do"
    monkeypatch.setattr(default_encoder, "open_known", lambda *given: Toy())
    said: list[str] = []
    encoder_for(open_source(str(photos)), None, None, note=said.append, words=True)
    assert "the default for searches in words; choose another with --encoder" in said[0]


def test_data_sets_keep_their_encoder(asked: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    encode_source(open_source("digits", limit=3), Toy(), tmp_path / "e")
    encoder_for(open_source("digits"), None, tmp_path / "e", note=said.append)
    assert (asked, said) == ([DATA_SET_ENCODER], [])


def test_embeddings_keep_their_encoder(asked: list[str], photos: Path, tmp_path: Path) -> None:
    encode_source(open_source(str(photos)), Toy(), tmp_path / "e")
    encoder_for(open_source(str(photos)), None, tmp_path / "e")
    encoder_for(open_source(str(photos)), "siamese-quick", tmp_path / "e")
    assert asked == ["toy", "siamese-quick"]


def test_errors_of_the_installation_are_not_taken_for_a_missing_network(
    monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    def opened(name: str, device: str = "auto", words: bool = False) -> Toy:
        raise BadInput("timm is broken")

    monkeypatch.setattr(default_encoder, "open_known", opened)
    with pytest.raises(BadInput, match="timm is broken"):
        encoder_for(open_source(str(photos)), None, None)

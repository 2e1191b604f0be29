"""Encoders that were opened before start from their exported network."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from encoders.onnx_encoder import Exported, ExportedText
from encoders.siamese import SiameseQuick
from encoders.toy import Toy
from retrieval.embedding import known
from retrieval.embedding.known import open_known
from retrieval.embedding.onnx_cache import keep_export
from retrieval.errors import UnknownName


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a trained encoder, which was opened and exported."""
    place = tmp_path / "mine"
    shutil.copytree(SiameseQuick.shipped(), place)
    opened = open_known(str(place))
    assert not isinstance(opened, Exported)
    keep_export(opened)
    return place


def test_a_known_encoder_opens_its_export(folder: Path) -> None:
    again = open_known(str(folder))
    assert isinstance(again, Exported)
    assert again.name == f"siamese:{folder}"
    assert again.fingerprint == SiameseQuick().fingerprint


def test_a_relative_folder_is_that_of_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_known("./mine"), Exported)


@pytest.mark.parametrize("change", ["weights", "card", "code", "retr", "gpu", "damaged"])
def test_what_has_changed_is_opened_by_name(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if change == "weights":
        (folder / "weights.safetensors").touch()
    elif change == "card":
        card = folder / "card.json"
        card.write_bytes(card.read_bytes())
    elif change == "code":
        more = tmp_path / "new.py"
        more.touch()
        found = known._code
        monkeypatch.setattr(known, "_code", lambda name: [*found(name), more])
    elif change == "retr":
        monkeypatch.setattr(known, "version", lambda package: "another")
    elif change == "gpu":
        monkeypatch.setattr(known, "may_have_gpu", lambda: True)
    else:
        known._file(str(folder)).write_text("{}")
    assert not isinstance(open_known(str(folder)), Exported)
    if change == "gpu":
        assert isinstance(open_known(str(folder), "cpu"), Exported)


def test_an_encoder_for_words_opens_its_text_tower() -> None:
    keep_export(open_known("words-small"))
    assert isinstance(open_known("words-small", words=True), ExportedText)
    assert not isinstance(open_known("words-small"), ExportedText)


def test_others_are_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_known("toy"), Toy)
    with pytest.raises(UnknownName):
        open_known("siamse")

    class Vanished(Toy):
        files = (Path("/nowhere/weights"),)

    monkeypatch.setattr(known, "open_encoder", lambda name, device: Vanished())
    opened: Any = open_known("toy")
    assert isinstance(opened, Vanished), "what cannot be remembered is opened all the same"

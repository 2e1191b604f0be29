"""`retr encode --runtime` and `--precision`."""

from pathlib import Path

import pytest

from retrieval.embedding.onnx_cache import export_folder
from tests.cli.running import Retr

ENCODER = ("--encoder", "siamese-quick")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--runtime", "onxn"), "unknown runtime 'onxn'"),
        (("--precision", "quick"), "unknown precision 'quick'"),
        (("--encoder", "toy", "--runtime", "onnx"), "encoder toy cannot be exported"),
    ],
)
def test_bad_choices_are_refused_and_nothing_is_written(
    retr: Retr, photos: Path, tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    assert said in retr.refused("encode", photos, "--out", tmp_path / "out", *given)


def test_the_answer_says_what_made_the_embeddings(retr: Retr, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("encode", photos, "--out", out, *ENCODER)
    made = retr.json(*given, "--runtime", "onnx", "--precision", "exact")["made_by"]
    assert [each["arithmetic"] for each in made] == ["float32"]
    assert made[0]["runtime"].startswith("onnx ") and made[0]["precision"] == "exact"
    assert retr.json("info", out)["made_by"] == made
    assert "made by   onnx " in retr("info", out).out
    again = retr(*given)
    assert "nothing to do" in again.out and "precision" not in again.err, "exact is balanced too"


def test_embeddings_that_are_less_exact_than_asked_are_kept_with_a_warning(
    retr: Retr, photos: Path, tmp_path: Path
) -> None:
    given = ("encode", photos, "--out", tmp_path / "out", *ENCODER)
    retr.json(*given)
    again = retr(*given, "--precision", "exact")
    assert again.code == 0
    assert "they were encoded with precision balanced; name another folder with --out" in again.err


@pytest.mark.slow
def test_a_folder_without_changes_holds_no_race(retr: Retr, photos: Path, tmp_path: Path) -> None:
    given = ("encode", photos, "--out", tmp_path / "out", *ENCODER, "--precision", "fast")
    first = retr(*given)
    assert "images/s" in first.err, "fast is calibrated"
    [made_by] = retr.json("info", tmp_path / "out")["made_by"]
    assert made_by["precision"] == "fast"
    fingerprint = retr.json("info", tmp_path / "out")["encoder"]["fingerprint"]
    decided = export_folder(fingerprint) / "runtime-fast-auto.json"
    decided.unlink()
    assert "nothing to do" in retr(*given).out
    assert not decided.exists()

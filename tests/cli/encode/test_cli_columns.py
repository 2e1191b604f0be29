"""Columns of images and labels in tables, given by options or found by name."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.gallery import Gallery
from tests.cli.running import Retr


@pytest.fixture
def table(gallery: Gallery, tmp_path: Path) -> Path:
    """Write the gallery as Parquet, with its images in `thumb` and black images in `image`."""
    black = tmp_path / "black.png"
    Image.new("RGB", (4, 4)).save(black)
    images = sorted(gallery.images.rglob("*.png"))
    facts = {"info": {"features": {"kind": {"names": ["blue", "green", "red"]}}}}
    columns = {
        "image": [black.read_bytes()] * len(images),
        "thumb": [image.read_bytes() for image in images],
        "label": ["none"] * len(images),
        "kind": [("blue", "green", "red").index(image.parent.name) for image in images],
    }
    whole = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(facts)})
    folder = tmp_path / "table"
    folder.mkdir()
    for number, rows in enumerate((slice(0, 0), slice(0, 40), slice(0, 0), slice(40, 60))):
        part = whole.slice(rows.start, rows.stop - rows.start)
        pq.write_table(part, folder / f"{number}.parquet")
    return folder


def test_chosen_columns_are_encoded_and_searched(retr: Retr, gallery: Gallery, table: Path) -> None:
    columns = ("--image-column", "thumb", "--label-column", "kind")
    made = retr.json("encode", table, "--encoder", "toy", *columns)
    assert (made["rows"], made["skipped"]) == (60, 0)
    retr.json("index", "--backend", "exact")
    (found,) = retr.json("search", gallery.image, "-k", 1, "--sheet", "sheet.png")
    path = found["hits"][0]["path"]
    assert found["hits"][0]["label"] == "green"
    assert "#thumb#" in path
    (again,) = retr.json("search", path, "-k", 1)
    assert again["hits"][0]["path"] == path
    sheet = np.asarray(Image.open(retr.cwd / "sheet.png").convert("RGB")).astype(int)
    assert (sheet[..., 1] - sheet[..., 0] > 50).sum() > 2 * 30 * 30  # the query and its match
    of_folder = retr.json("search", table, "-k", 1, *columns)
    assert [each["hits"][0]["distance"] for each in of_folder] == pytest.approx([0] * 60, abs=1e-5)
    others = retr.json("encode", table, "--encoder", "toy")
    assert others["out"] != made["out"]
    assert set(pq.read_table(Path(others["out"]) / "part-00000.parquet")["label"].to_pylist()) == {
        "none"
    }


def test_wrong_column_is_a_one_line_error(retr: Retr, table: Path) -> None:
    for option, name in (("--image-column", "thumbs"), ("--label-column", "kinds")):
        message = retr.refused("encode", table, "--encoder", "toy", option, name)
        assert f"unknown column of {table}/1.parquet '{name}'; did you mean" in message
    message = retr.refused("encode", "digits", "--encoder", "toy", "--image-column", "a")
    assert "has no columns to choose from" in message


def test_parquet_beside_images_is_a_one_line_warning(
    retr: Retr, gallery: Gallery, table: Path
) -> None:
    (table / "a.png").write_bytes(gallery.image.read_bytes())
    done = retr("encode", table, "--encoder", "toy", "--out", "a", "--json")
    assert done.document["rows"] == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith(f"warning: {table} holds image and .parquet files: the image files")
    assert not retr("encode", table, "--encoder", "toy", "--out", "a", "--quiet").err
    assert retr.json("encode", table / "*.parquet", "--encoder", "toy", "--out", "b")["rows"] == 60

"""Tables of images for tests. Each image has its own shade."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.errors import BadImage
from retrieval.images import Columns, decode, open_source
from retrieval.images.tables.choice import NO_CHOICE

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (shade % 256, shade // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(
    file: Path,
    first: int,
    count: int,
    labels: pa.Array | None = None,
    *,
    column: str = "img",
    metadata: object = None,
    row_group_size: int = 10,
) -> None:
    """A part whose images have the shades `first`, `first + 1`, …"""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(images, kind)}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, file, row_group_size=row_group_size)


def shade(content: object) -> int:
    red, green, _ = np.asarray(decode(content, "x"))[0, 0].tolist()  # type: ignore[arg-type]
    return int(red) + 256 * int(green)


def notes(spec: str, columns: Columns = NO_CHOICE) -> list[str]:
    """Return the notes of opening the source."""
    said: list[str] = []
    open_source(spec, note=said.append, columns=columns)
    return said


def reason(content: object) -> str:
    """Why the image cannot be decoded."""
    with pytest.raises(BadImage) as caught:
        decode(content, "x")  # type: ignore[arg-type]
    return caught.value.reason


def save(table: pa.Table, file: Path) -> None:
    """Write it as Parquet, or as an Arrow stream of batches of two rows."""
    if file.suffix == ".parquet":
        pq.write_table(table, file)
        return
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)

"""Damage to embeddings and index folders, for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval import open_encoder
from retrieval.contracts import Metric
from retrieval.storage.files import sealed, sha256_of
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter

PART = "part-00000.parquet"


Copied = Callable[[Path], Path]


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of the JSON object in the file."""
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))


def rewrite_shard(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the columns of the first shard, and update its size and hash in the manifest."""
    path = folder / PART
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), path)
    shard = json.loads((folder / "manifest.json").read_text())["shards"][0]
    shard |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    edit_json(folder / "manifest.json", shards=[shard])


def make_embeddings(
    folder: Path, vectors: NDArray[np.float32], encoder: EncoderFacts | None = None
) -> Path:
    """Write embeddings of any dimension, labeled `a` and `b` in turn."""
    toy = EncoderFacts.of(open_encoder("toy"))
    count, dim = vectors.shape
    source = SourceFacts(folder.name, "0" * 64, count)
    facts = Facts(encoder or toy, dim, Dtype.FLOAT32, Metric.EUCLIDEAN, source, count)
    writer = ShardWriter(folder, facts)
    names = [f"{folder.name}/{row}.png" for row in range(count)]
    writer.write(names, ["ab"[row % 2] for row in range(count)], names, vectors)
    writer.finish()
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

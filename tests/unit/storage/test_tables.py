"""Tables of rows as Parquet."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from retrieval.storage.tables import read_table, write_table
from tests.tables import png

TABLE = pa.table({"id": ["a", "b"], "label": ["x", None], "path": [None, "b.png"]})

# A thread that still holds Python's bytes when the interpreter ends aborts the process.
THREADS = """
import sys
from pathlib import Path
from retrieval.images import read_image
from retrieval.storage.tables import read_table

def threads():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("jemalloc" not in name for name in names)  # those belong to Arrow's memory

before = threads()
if sys.argv[1] == "table":
    read_table(Path(sys.argv[2]).read_bytes())
else:
    read_image(f"{sys.argv[2]}#1")
print(threads() - before)
"""


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path / "rows.parquet", TABLE)
    assert read_table((tmp_path / "rows.parquet").read_bytes()).equals(TABLE)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["table", "image"])
def test_reading_parquet_starts_no_threads(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "images.parquet"
    write_table(file, pa.table({"image": [png(3), png(4)], "label": ["x", "y"]}))
    command = [sys.executable, "-c", THREADS, kind, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"

"""Conversion between the contract and faiss: metrics, masks, distances, files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, assert_never

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.choices import choice
from retrieval.contracts import Mask, Metric, Vectors
from retrieval.errors import BadData
from retrieval.hits import Found
from retrieval.storage.files import native_path, write_whole

FILE = "index.faiss"
MAX_TABLE_BYTES = 1 << 28  # tables that faiss may build from a small file
MAX_COMPARED_ROWS = 10_000  # matching rows of a mask that are compared one by one

METRICS = {
    Metric.COSINE: faiss.METRIC_INNER_PRODUCT,  # vectors have length 1
    Metric.EUCLIDEAN: faiss.METRIC_L2,
    Metric.INNER_PRODUCT: faiss.METRIC_INNER_PRODUCT,
    Metric.MANHATTAN: faiss.METRIC_L1,
}

AnyIndex = TypeVar("AnyIndex", bound=faiss.Index)


def selector(among: Mask | None) -> faiss.IDSelectorBitmap | None:
    """Return faiss's selector of the mask's rows: one bit per row, lowest bit first."""
    if among is None:
        return None
    bits = np.packbits(among, bitorder="little")
    return faiss.IDSelectorBitmap(bits)  # type: ignore[arg-type,call-arg]


def to_distances(scores: NDArray[np.float32], metric: Metric | str) -> NDArray[np.float32]:
    """Convert faiss's scores in place to the distances that `Metric` defines."""
    metric = choice(Metric, metric)
    match metric:
        case Metric.COSINE:
            np.subtract(1, scores, out=scores)
            np.maximum(scores, 0, out=scores)  # a cosine may exceed 1 by rounding
        case Metric.EUCLIDEAN:
            np.maximum(scores, 0, out=scores)
            np.sqrt(scores, out=scores)
        case Metric.INNER_PRODUCT:
            np.subtract(0, scores, out=scores)
        case Metric.MANHATTAN:
            pass
        case _:
            assert_never(metric)
    return scores


def compared(
    flat: faiss.IndexFlat, queries: Vectors, count: int, among: Mask | None, metric: Metric | str
) -> Found:
    """Return the true neighbors of prepared queries (q, dim) among the rows of the mask."""
    metric = choice(Metric, metric)
    parameters = None
    if among is not None:
        rows_of_mask = faiss.IDSelectorArray(np.flatnonzero(among))
        parameters = faiss.SearchParameters(sel=rows_of_mask)  # type: ignore[call-arg]
    scores, rows = flat.search(queries, count, params=parameters)
    return rows, to_distances(scores, metric)


def vectors_of(flat: faiss.IndexFlat) -> Vectors:
    """Return a view of the vectors (n, dim) of a flat index, valid as long as the index."""
    return np.asarray(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d))


def view_of(values: Any) -> NDArray[Any]:
    """Return a view of a vector of faiss, valid as long as the vector."""
    return np.asarray(faiss.rev_swig_ptr(values.data(), values.size()))


def inside(index: Any) -> Any:
    """Return the innermost index, below refinement and rotation, with its own class."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return inside(index.base_index)
    if isinstance(index, faiss.IndexPreTransform):
        return inside(index.index)
    return index


def set_parameters(index: Any, text: str) -> None:
    """Set faiss's search parameters, such as `nprobe=16,k_factor_rf=4`. Raises RuntimeError."""
    space: Any = faiss.ParameterSpace()
    space.set_index_parameters(index, text)


def reserve(codes: Any, size: int) -> None:
    """Reserve memory for this number of bytes in an empty vector of codes."""
    codes.resize(size)
    codes.resize(0)  # keeps the memory


def reserve_vectors(index: faiss.IndexRefineFlat, rows: int) -> None:
    """Reserve memory for this number of vectors that refine codes."""
    flat: Any = faiss.downcast_index(index.refine_index)
    reserve(flat.codes, rows * flat.code_size)


def reserve_lists(lists: Any, sizes: NDArray[np.int64]) -> None:
    """Reserve memory in each inverted list, all empty, for its number of vectors."""
    for number, size in enumerate(sizes.tolist()):
        lists.resize(number, size)
        lists.resize(number, 0)


def renumber(lists: Any, numbers: NDArray[np.int64]) -> None:
    """Give each row in the inverted lists its new number, `numbers[row]`."""
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = numbers[ids]


def save(index: faiss.Index, folder: Path) -> None:
    """Write the index to `FILE` in the folder."""

    def write(partial: Path) -> None:
        with native_path(partial) as path:
            faiss.write_index(index, path)

    write_whole(folder / FILE, write)


def reason(problem: Exception) -> str:
    """Return faiss's error message, without its place in the code."""
    said = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", str(problem)).split("\n")[0]
    return re.sub(r"^\w+::\w+: ?", "", said)


def load(
    folder: Path, kind: type[AnyIndex], metric: Metric | str, mapped: bool = False
) -> AnyIndex:
    """Load the index in `FILE`. Raises BadData if it is missing, damaged or of another kind.

    mapped: read its arrays from the file when they are used, as memory-mapped pages.
    """
    metric = choice(Metric, metric)
    path = folder / FILE
    if not path.is_file():
        raise BadData(f"{path} not found; build the index again")
    try:
        with _bounded(path.stat().st_size), native_path(path) as name:
            index = faiss.read_index(name, faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (RuntimeError, MemoryError) as problem:
        raise BadData(f"{path} is damaged ({reason(problem)}); build the index again") from None
    if not isinstance(index, kind) or index.metric_type != METRICS[metric]:
        raise BadData(
            f"{path} holds {type(index).__name__} with faiss's metric {index.metric_type}, wanted"
            f" {kind.__name__} with {METRICS[metric]} ({metric}); build the index again"
        )
    if not (index.is_trained and _agrees_with_inner(index) and _rows_fit(index)):
        raise BadData(f"{path} is damaged (inconsistent sizes); build the index again")
    return index


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """Limit the memory that faiss allocates for any part of a file to the file's size.

    Tables that faiss computes from the file count too.
    """
    bytes_before = faiss.get_deserialization_vector_byte_limit()
    loops_before = faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(max(4 * size, MAX_TABLE_BYTES))
    faiss.set_deserialization_loop_limit(size)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(bytes_before)
        faiss.set_deserialization_loop_limit(loops_before)


def _agrees_with_inner(index: Any) -> bool:
    """Return whether an index and the indices within it agree on their rows."""
    parts = []
    if isinstance(index, faiss.IndexRefine):
        parts = [index.base_index, index.refine_index]
    elif isinstance(index, faiss.IndexPreTransform):
        parts = [index.index]
    inner = [faiss.downcast_index(part) for part in parts]
    return all(
        part.ntotal == index.ntotal and part.is_trained and _agrees_with_inner(part)
        for part in inner
    )


def _rows_fit(index: Any) -> bool:
    """Return whether inverted lists, if there are any, hold each row once."""
    base = inside(index)
    if not isinstance(base, faiss.IndexIVF):
        return True
    lists: Any = base.invlists
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    if sum(sizes) != base.ntotal:
        return False
    seen = np.zeros(base.ntotal, np.bool_)
    for number, size in enumerate(sizes):
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            if ids.min() < 0 or ids.max() >= base.ntotal:
                return False
            seen[ids] = True
    return bool(seen.all())


def load_refined(folder: Path, kind: type[AnyIndex], metric: Metric | str) -> faiss.IndexRefineFlat:
    """Load an index in `FILE` that refines one of this kind. Raises BadData; see `load`."""
    index = load(folder, faiss.IndexRefineFlat, metric)
    base = inside(index)
    if not isinstance(base, kind):
        raise BadData(
            f"{folder / FILE} holds {type(base).__name__}, not {kind.__name__}; build the index "
            "again"
        )
    return index

"""A graph in layers and its codes, as an index of faiss: what `hnsw-pca` writes and reads.

Whole vectors are in the same index, which refines by them; compact ones have a file of their own.
Codes of 8 bits are faiss's QT_8bit_uniform. Codes of 16 bits are written as numbers in float32,
because faiss has no such codes. faiss adds the square of a row's rest to its distance, as if that
of the query were 0.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexers.faiss import bridge
from indexers.graph import vectors as vectors_file
from indexers.graph.coding import (
    BITS,
    DISTANCE_OF_METRIC,
    LARGEST_8,
    LARGEST_MIDDLE,
    Codes,
    Coding,
    reaches,
    step_for,
    width_of,
)
from indexers.graph.distances import INNER_PRODUCT, MAX_CODE_LENGTH
from indexers.graph.layers import Layers
from indexers.graph.vectors import CompactVectors, RankedVectors, WholeVectors
from retrieval.choices import choice
from retrieval.contracts import Metric, Vectors
from retrieval.errors import BadData
from retrieval.hits import BLOCK_ROWS
from retrieval.runtime.memory import aligned_empty
from retrieval.storage.document import parsed
from retrieval.storage.files import read_json, write_json

FILE = "codes.json"


@dataclass(frozen=True, slots=True)
class _CodeFacts:
    """codes.json: see `Coding`."""

    bits: int
    step: float
    has_rest: bool
    middle: float
    correlation: float
    margin: float


def save(
    folder: Path, vectors: RankedVectors, codes: Codes, coding: Coding, layers: Layers, metric: int
) -> None:
    """Write index.faiss and `FILE`, and the file of compact vectors or none.

    metric: faiss's, of the graph.
    """
    base = faiss.IndexPreTransform(_graph(codes, coding, layers, metric))
    base.ntotal = 0
    turn: Any = faiss.LinearTransform(vectors.dim, coding.width, True)
    faiss.copy_array_to_vector(np.ascontiguousarray(coding.turn[:, :-1]).ravel(), turn.A)
    offsets = np.zeros(coding.width, np.float32)
    if coding.has_rest:
        offsets[-1] = -coding.middle * coding.step
    faiss.copy_array_to_vector(offsets, turn.b)
    centering: Any = faiss.CenteringTransform(vectors.dim)
    faiss.copy_array_to_vector(coding.center, centering.mean)
    for transform in (turn, centering):
        transform.is_trained = True
        base.prepend_transform(transform)
    facts = {each.name: getattr(coding, each.name) for each in fields(_CodeFacts)}
    write_json(folder / FILE, facts)
    if isinstance(vectors, CompactVectors):
        base.ntotal = len(vectors)
        vectors.save(folder)
        bridge.save(base, folder)
        return
    assert isinstance(vectors, WholeVectors)
    (folder / vectors_file.FILE).unlink(missing_ok=True)
    base.ntotal = len(vectors)
    bridge.save(faiss.IndexRefine(base, vectors.stored), folder)


def load(
    folder: Path, metric: Metric | str, mapped: bool
) -> tuple[RankedVectors, Codes, Coding, Layers]:
    """Return the vectors, their codes and the graph in the folder.

    metric: of the index; that of the file is what the graph compares vectors by. mapped: leave the
    vectors in the file, as memory-mapped pages.

    Raises BadData for missing and damaged files.
    """
    metric = choice(Metric, metric)
    path = folder / bridge.FILE
    is_compact = (folder / vectors_file.FILE).is_file()
    index: Any
    if is_compact:
        index = bridge.load(folder, faiss.IndexPreTransform, graph_metric(metric))
    else:
        index = bridge.load(folder, faiss.IndexRefine, graph_metric(metric), mapped)
    graph = bridge.inside(index)
    if not isinstance(graph, faiss.IndexHNSW):
        raise BadData(f"{path} holds {type(graph).__name__}, no graph; build the index again")
    layers = _layers(graph, path)
    base = index if is_compact else faiss.downcast_index(index.base_index)
    codes, coding = _codes(base, graph, folder, metric)
    if is_compact:
        return CompactVectors.load(folder, len(codes), coding.center, mapped), codes, coding, layers
    stored = _detached(index)  # the rest of faiss's index is freed
    if not (isinstance(stored, faiss.IndexFlat) or _has_bytes(stored)):
        raise BadData(f"{path} has vectors of a wrong kind; build the index again")
    return WholeVectors(stored, mapped), codes, coding, layers


def graph_metric(metric: Metric | str) -> Metric:
    """Return the metric of faiss's index: distances are more precise on vectors of length 1."""
    metric = choice(Metric, metric)
    return Metric.EUCLIDEAN if metric is Metric.COSINE else metric


def _has_bytes(stored: Any) -> bool:
    return (
        isinstance(stored, faiss.IndexScalarQuantizer)
        and stored.sq.qtype == faiss.ScalarQuantizer.QT_8bit_direct
        and stored.codes.size() == stored.ntotal * stored.d
    )


def _detached(index: Any) -> Any:
    """Return the index of vectors inside, which is no longer freed with the index around it."""
    flat: Any = faiss.downcast_index(index.refine_index)
    index.own_refine_index = False
    owner: Any = faiss.IndexPreTransform(flat)
    owner.own_fields = True
    owner.referenced_objects.clear()  # no cycle: memory is freed at once
    flat.referenced_objects = [owner]
    return flat


def _graph(codes: Codes, coding: Coding, layers: Layers, metric: int) -> Any:
    rows, m = len(codes), layers.m
    graph: Any
    storage: Any
    if coding.bits == 8:
        kind: Any = faiss.ScalarQuantizer.QT_8bit_uniform
        graph = faiss.IndexHNSWSQ(coding.width, kind, m, metric)
        storage = faiss.downcast_index(graph.storage)
        # Its numbers are vmin + (code + 1/2) / 255 · vdiff.
        least, range_ = -(LARGEST_8 + 1.5) * coding.step, 255 * coding.step
        faiss.copy_array_to_vector(np.array([least, range_], np.float32), storage.sq.trained)
        storage.codes.resize(codes.size)
        view = bridge.view_of(storage.codes)
        np.add(codes.ravel(), LARGEST_8 + 1, out=view, casting="unsafe", dtype=np.int16)
        storage.ntotal, storage.is_trained = rows, True
    else:
        graph = faiss.IndexHNSWFlat(coding.width, m, metric)
        storage = faiss.downcast_index(graph.storage)
        bridge.reserve(storage.codes, 4 * codes.size)
        for start in range(0, rows, BLOCK_ROWS):
            block = codes[start : start + BLOCK_ROWS] * np.float64(coding.step)
            storage.add(block.astype(np.float32))
    graph.is_trained, graph.ntotal = True, rows
    found = graph.hnsw
    faiss.copy_array_to_vector(layers.levels.astype(np.int32) + 1, found.levels)
    sizes = 2 * m + m * layers.levels.astype(np.uint64)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes)])
    faiss.copy_array_to_vector(offsets, found.offsets)
    found.neighbors.resize(int(offsets[-1]))
    neighbors = bridge.view_of(found.neighbors)
    starts = offsets[:-1].astype(np.int64)
    for column in range(2 * m):
        neighbors[starts + column] = layers.links[:, column]
    for level in range(1, layers.top + 1):
        here = np.flatnonzero(layers.levels >= level)
        places = starts[here, None] + (level + 1) * m + np.arange(m)
        neighbors[places] = layers.upper[layers.lines[here] + level - 1]
    found.entry_point, found.max_level = layers.entry, layers.top
    return graph


def _layers(graph: Any, path: Path) -> Layers:
    """Return the links of faiss's graph. Raises BadData unless all are in range."""
    found, rows = graph.hnsw, int(graph.ntotal)
    degree = int(found.nb_neighbors(0))
    m = degree // 2
    levels = bridge.view_of(found.levels).astype(np.int64) - 1
    starts = bridge.view_of(found.offsets).astype(np.int64)
    neighbors = bridge.view_of(found.neighbors)
    entry, top = int(found.entry_point), int(found.max_level)
    sizes = degree + m * levels
    if (
        not len(levels) == rows == len(starts) - 1
        or degree != 2 * m
        or not 0 <= levels.min() <= levels.max() == top < 256
        or starts[0] != 0
        or not np.array_equal(np.diff(starts), sizes)
        or starts[-1] != len(neighbors)
        or not 0 <= entry < rows
        or levels[entry] != top
        or not -1 <= neighbors.min() <= neighbors.max() < rows
    ):
        raise _out_of_range(path)
    starts = starts[:-1]
    links = aligned_empty((rows, degree), np.int32)
    for column in range(degree):
        links[:, column] = neighbors[starts + column]
    firsts = np.cumsum(levels) - levels
    upper = np.empty((int(levels.sum()), m), np.int32)
    for level in range(1, top + 1):
        here = np.flatnonzero(levels >= level)
        found_here = neighbors[starts[here, None] + (level + 1) * m + np.arange(m)]
        if (levels[found_here[found_here >= 0]] < level).any():
            raise _out_of_range(path)
        upper[firsts[here] + level - 1] = found_here
    lines = np.where(levels > 0, firsts, -1).astype(np.int32)
    return Layers(links, levels.astype(np.uint8), upper, lines, entry)


def _codes(base: Any, graph: Any, folder: Path, metric: Metric) -> tuple[Codes, Coding]:
    """Return the codes of the graph's rows, and how queries become codes."""
    kind = DISTANCE_OF_METRIC[metric]
    storage: Any = faiss.downcast_index(graph.storage)
    matrix, center = _matrix(base, graph.d), _center(base)
    path = folder / FILE
    if not path.is_file():
        return _unnamed_codes(bridge.vectors_of(storage), matrix, kind)
    facts = parsed(read_json(path), _CodeFacts, path, "build the index again")
    if not (
        facts.bits in BITS
        and 0 < facts.step < np.inf
        and 0 <= facts.middle <= LARGEST_MIDDLE
        and 0 <= facts.correlation <= 1
        and 1 <= facts.margin < np.inf
    ):
        raise BadData(f"{path} is damaged (a number is out of range); build the index again")
    of_8_bits = isinstance(storage, faiss.IndexScalarQuantizer)
    if of_8_bits != (facts.bits == 8) or graph.d != width_of(graph.d, facts.bits):
        raise BadData(f"{path} does not belong to {bridge.FILE} beside it; build the index again")
    coding = replace(
        Coding.along(kind, matrix, center, facts.bits, facts.step),
        has_rest=facts.has_rest,
        middle=facts.middle,
        correlation=facts.correlation,
        margin=facts.margin,
    )
    if of_8_bits:
        raw = bridge.view_of(storage.codes).reshape(-1, graph.d)
        codes = aligned_empty(raw.shape, np.int8)
        np.subtract(raw, np.uint8(LARGEST_8 + 1), out=codes.view(np.uint8))
        return codes, coding
    codes = aligned_empty((graph.ntotal, graph.d), np.int16)
    numbers = bridge.vectors_of(storage)
    for start in range(0, len(codes), BLOCK_ROWS):
        block = numbers[start : start + BLOCK_ROWS] / np.float64(facts.step)
        codes[start : start + BLOCK_ROWS] = np.rint(
            np.clip(block, -MAX_CODE_LENGTH, MAX_CODE_LENGTH)
        )
    return codes, coding


def _unnamed_codes(
    numbers: Vectors, matrix: NDArray[np.float32], kind: int
) -> tuple[Codes, Coding]:
    """Return codes of 16 bits for the numbers (n, axes) in a file without `FILE`."""
    axes = len(matrix)
    width = width_of(axes, 16)
    center = np.zeros(width)
    if kind != INNER_PRODUCT:
        center[:axes] = numbers.mean(axis=0, dtype=np.float64)
    turn = np.zeros((width, matrix.shape[1] + 1), np.float32)
    turn[:axes, :-1], turn[:, -1] = matrix, -center
    blocks = range(0, len(numbers), BLOCK_ROWS)

    def block(start: int) -> NDArray[np.float64]:
        some = numbers[start : start + BLOCK_ROWS]
        return np.pad(some, ((0, 0), (0, width - axes))) - center

    step = step_for(np.concatenate([reaches(block(start), 16) for start in blocks]), 16)
    coding = Coding(kind, turn, np.zeros(matrix.shape[1], np.float32), 16, step)
    return np.concatenate([coding.rounded(block(start)) for start in blocks]), coding


def _matrix(base: Any, axes: int) -> NDArray[np.float32]:
    """Return the matrix (axes, dim) onto the axes of faiss's index."""
    if not isinstance(base, faiss.IndexPreTransform):
        return np.eye(axes, base.d, dtype=np.float32)
    chain: Any = base.chain
    turn: Any = faiss.downcast_VectorTransform(chain.at(chain.size() - 1))
    return np.asarray(faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in))


def _center(base: Any) -> NDArray[np.float32]:
    """Return the center (dim,) that faiss's index subtracts from vectors."""
    if isinstance(base, faiss.IndexPreTransform):
        chain: Any = base.chain
        first: Any = faiss.downcast_VectorTransform(chain.at(0))
        if isinstance(first, faiss.CenteringTransform):
            return np.asarray(faiss.vector_to_array(first.mean), np.float32)
    return np.zeros(base.d, np.float32)


def _out_of_range(path: Path) -> BadData:
    return BadData(f"{path}: graph has links out of range; build the index again")

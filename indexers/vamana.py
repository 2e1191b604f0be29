"""A graph of one layer with long links, with greedy search: SVS.

Jayaram Subramanya et al., DiskANN (NeurIPS 2019), as in Intel's Scalable Vector Search: Aguerrebere
et al., Similarity search in the blink of an eye with compressed indices (VLDB 2023). The vectors
are also in a flat index of faiss, for queries that a walk cannot answer.
"""

import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import ceil, frexp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from indexers.copies import Copies
from indexers.faiss import bridge
from indexers.file_sizes import check_file_sizes, file_sizes
from indexers.graph.effort import DEFAULT_EF, settle_ef
from indexers.options import EFFORTS, check_range
from retrieval.choices import choice
from retrieval.contracts import Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import Found, InMemory, answer, checked_vectors, prepared, prepared_blocks
from retrieval.runtime.threads import usable_cores
from retrieval.storage.document import parsed
from retrieval.storage.files import native_path, read_json, write_json
from retrieval.values import resolve_options

FACTS = "vamana.json"
SVS_FILES = ("parameters", "graph", "vectors")
"""Names of SVS's output folders; an index has their files under these names."""

SVS_HEADER_BYTES = 1024  # before the table in a binary file
SVS_SHAPE_OFFSET = 24  # bytes, in the header
SVS_SETTINGS = "svs_config.toml"
MAX_NUMPY_DISTANCES = 256  # numpy is faster than starting faiss's threads
MAX_CANDIDATES = 1000  # a search with a mask that needs more compares all matching rows
COMPARED_PER_CANDIDATE = 8
"""Vectors that are compared one by one in the time in which a walk takes a candidate."""

MAX_DOUBLINGS = 100  # scale of vectors whose squares underflow float32, as a power of two
NO_LINES = np.empty(0, np.int64)


@dataclass(frozen=True)
class Vamana:
    """`vamana`: walk a graph that links each vector to up to `degree` others, near and far.

    degree: maximum links of a vector; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks; more cost time and raise recall. None for 128, or for
    more if the build finds that queries need more; see `indexers.graph.effort`.
    halves: store vectors in half precision for the walk, which is faster, above all for long ones.
    refine: with halves, candidates per requested neighbor whose full vectors are compared; more
    raise recall if half precision cannot distinguish neighbors. With 0, distances are those in
    half precision, with about three correct digits.

    Copies of a vector are linked once, and all copies are found; see `indexers.copies`.

    Needs the library SVS: `pip install 'retr[vamana]'`, for Linux on x86-64. Rows cannot be added.
    """

    metric: Metric = Metric.COSINE
    degree: int = 32
    ef_construction: int = 200
    ef: int | None = None
    halves: bool = True
    refine: int = 1
    search_options: ClassVar[frozenset[str]] = frozenset({"ef", "refine"})

    def __post_init__(self) -> None:
        resolve_options(self)
        if self.metric is Metric.MANHATTAN:
            raise BadInput(f"SVS has no {self.metric} distance; use the backend exact or ivf")
        check_range("degree", self.degree, 4, 1024)
        check_range("ef_construction", self.ef_construction, 1, 100_000)
        if self.ef is not None:
            check_range("ef", self.ef, 1, 100_000)
        check_range("refine", self.refine, 0, 1000)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Vamana"]:
        """Return graphs with few and with many links; none if SVS is not installed."""
        metric = choice(Metric, metric)
        if metric is Metric.MANHATTAN or not _installed():
            return []
        return [cls(metric, degree=degree, ef=EFFORTS[-1]) for degree in (16, 32, 64)]

    def ladders(self) -> list[list["Vamana"]]:
        """Return ladders by ascending `ef`; with halves, one without refinement and one with it."""
        refines = (0, 1, 2) if self.halves else (1,)
        return [[replace(self, refine=refine, ef=ef) for ef in EFFORTS] for refine in refines]

    def apply(self, index: Index) -> None:
        """Set `ef` and `refine`; an `ef` of None leaves it as it is."""
        assert isinstance(index, VamanaIndex)
        if self.ef is not None:
            index.graph.search_window_size = self.ef
        index.refine = self.refine if self.halves else 0

    def settled(self, index: Index) -> "Vamana":
        """Return these options with the index's own `ef` in place of None."""
        assert isinstance(index, VamanaIndex)
        return replace(self, ef=int(index.graph.search_window_size))

    def build(self, vectors: Vectors) -> "VamanaIndex":
        """Build an index of vectors (n, dim), n ≥ 1, which are not changed. Raises BadInput."""
        svs = _svs()
        vectors = checked_vectors(vectors, self.metric)
        blocks = InMemory(vectors)
        copies = Copies.find(blocks, self.metric)
        if copies.vector_of is not None:
            vectors = vectors[copies.is_first]
        flat = faiss.IndexFlat(vectors.shape[1], bridge.METRICS[self.metric])
        scaled = np.empty(vectors.shape, np.float16 if self.halves else np.float32)
        scale = _scale(vectors) if self.halves and self.metric is not Metric.COSINE else 1.0
        for start, block in prepared_blocks(vectors, self.metric):
            flat.add(block)
            scaled[start : start + len(block)] = block * np.float32(scale)
        parameters = svs.VamanaBuildParameters(
            graph_max_degree=self.degree, window_size=self.ef_construction
        )
        squares = self._walks_by_squares(vectors)
        graph = svs.Vamana.build(
            parameters, scaled, _svs_metric(svs, squares), num_threads=usable_cores()
        )
        index = self._searched(graph, flat, scale, squares, copies)
        if self.ef is None:
            settle_ef(partial(setattr, graph, "search_window_size"), index, blocks, self.metric)
        return index

    def load(self, folder: Path) -> "VamanaIndex":
        """Load the index saved in the folder, with this `refine` and `ef`; 128 for an `ef` of None.

        Raises BadData if it is missing or damaged.
        """
        svs = _svs()
        flat = bridge.load(folder, faiss.IndexFlat, self.metric)
        scale, squares = _checked_facts(folder)
        _check_graph(folder, flat.ntotal)
        with TemporaryDirectory() as name:
            at = {part: Path(name) / part for part in SVS_FILES}
            for file in _files(folder):
                part, _, kind = file.name.partition(".")
                at[part].mkdir(exist_ok=True)
                place = at[part] / (SVS_SETTINGS if kind == "toml" else kind)
                place.symlink_to(file.resolve())
            kept = svs.DataType.float16 if self.halves else svs.DataType.float32
            try:
                graph = svs.Vamana(
                    str(at["parameters"]),
                    svs.GraphLoader(str(at["graph"])),
                    svs.VectorDataLoader(str(at["vectors"]), kept, dims=flat.d),
                    _svs_metric(svs, squares),
                    num_threads=usable_cores(),
                )
            except RuntimeError as problem:
                reason = str(problem).splitlines()[0]
                raise BadData(f"{folder} is damaged ({reason}); build the index again") from None
        return self._searched(graph, flat, scale, squares, Copies.load(folder, flat.ntotal))

    def _walks_by_squares(self, vectors: Vectors) -> bool:
        """Return whether the graph uses squared differences, not products.

        For vectors of length 1 both rank equally. Squares are more precise for halves. Products are
        as precise for float32, and correct for zero vectors.
        """
        if self.metric is Metric.COSINE:
            return self.halves and bool(vectors.any(axis=1).all())
        return self.metric is Metric.EUCLIDEAN

    def _searched(
        self, graph: Any, flat: faiss.IndexFlat, scale: float, squares: bool, copies: Copies
    ) -> "VamanaIndex":
        graph.search_window_size = self.ef or DEFAULT_EF
        refine = self.refine if self.halves else 0
        return VamanaIndex(graph, flat, scale, squares, self.metric, refine, copies)


class VamanaIndex:
    """SVS's graph over the distinct vectors times `scale`, and these vectors in a flat index.

    squares: SVS returns squared differences, not products. refine: candidates per neighbor whose
    vectors are compared; 0 to take SVS's distances. copies: the rows of each vector.
    """

    def __init__(
        self,
        graph: Any,
        flat: faiss.IndexFlat,
        scale: float,
        squares: bool,
        metric: Metric | str,
        refine: int,
        copies: Copies,
    ) -> None:
        self.metric = choice(Metric, metric)
        self.graph = graph
        self.flat = flat
        self.vectors = bridge.vectors_of(flat)
        self.scale = scale
        self.squares = squares
        self.refine = refine
        self.copies = copies
        self.dim = int(flat.d)

    @property
    def details(self) -> Mapping[str, Json]:
        """The number of distinct vectors, if rows share any."""
        return self.copies.details

    def __len__(self) -> int:
        return self.copies.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k nearest rows that a walk finds; see `Index` and `Hits`.

        With a mask that admits many rows, the walk continues until it has found enough of them.
        With a smaller mask, all matching rows are compared.
        """
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def save(self, folder: Path) -> None:
        """Write index.faiss and the files of `svs.Vamana.save` into one folder."""
        bridge.save(self.flat, folder)
        for file in _files(folder):
            file.unlink()
        with TemporaryDirectory(dir=folder) as name:
            with native_path(Path(name)) as native:
                self.graph.save(*(f"{native}/{part}" for part in SVS_FILES))
            for place in (Path(name) / part for part in SVS_FILES):
                for file in place.iterdir():
                    kind = "toml" if file.name == SVS_SETTINGS else file.name
                    file.rename(folder / f"{place.name}.{kind}")
        facts: dict[str, Json] = {
            "scale": self.scale,
            "squares": self.squares,
            "bytes": file_sizes(_files(folder)),
        }
        write_json(folder / FACTS, facts)
        self.copies.save(folder)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        wanted = count * max(1, self.refine)
        if among is not None:
            matching = int(np.count_nonzero(among))
            wanted = ceil(1.5 * wanted * self.copies.vectors / matching)
            walk = COMPARED_PER_CANDIDATE * max(wanted, self.graph.search_window_size)
            if matching <= walk or wanted > MAX_CANDIDATES:
                return bridge.compared(self.flat, queries, count, among, self.metric)
        wanted = min(wanted, self.copies.vectors)
        scaled = queries if self.scale == 1 else queries * np.float32(self.scale)
        found, nearness = self.graph.search(scaled, wanted)
        rows = found.view(np.int64)
        short = _short(rows, nearness)
        distances = (
            self._distances(queries, rows) if self.refine else self._converted(nearness, queries)
        )
        if among is not None:
            distances[~among[rows]] = np.inf
            short = np.union1d(short, np.flatnonzero(np.isfinite(distances).sum(1) < count))
        if wanted > count:
            order = np.argsort(distances, axis=1, kind="stable")[:, :count]
            rows = np.take_along_axis(rows, order, 1)
            distances = np.take_along_axis(distances, order, 1)
        if len(short):
            rows[short], distances[short] = bridge.compared(
                self.flat, queries[short], count, among, self.metric
            )
        return rows, distances

    def _converted(self, nearness: NDArray[np.float32], queries: Vectors) -> NDArray[np.float32]:
        """Convert SVS's scores (q, n) in place to distances of prepared queries (q, dim)."""
        if self.scale != 1:
            nearness *= np.float32(self.scale**-2)
        if self.metric is Metric.COSINE and self.squares:
            nearness *= np.float32(0.5)
            nearness[~queries.any(axis=1)] = 1  # zero vectors are orthogonal to everything
            return nearness
        return bridge.to_distances(nearness, self.metric)

    def _distances(self, queries: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the distances (q, n) of prepared queries (q, dim) to rows (q, n)."""
        if rows.size > MAX_NUMPY_DISTANCES:
            scores = np.empty(rows.shape, np.float32)
            swig, flat = faiss.swig_ptr, cast(Any, self.flat)
            flat.compute_distance_subset(
                len(queries), swig(queries), rows.shape[1], swig(scores), swig(rows)
            )
            return bridge.to_distances(scores, self.metric)
        there, here = self.vectors.take(rows, axis=0), queries[:, None]
        if self.metric is Metric.EUCLIDEAN:
            there -= here
            here = there
        return bridge.to_distances(np.vecdot(there, here), self.metric)


def _short(rows: NDArray[np.int64], nearness: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the lines in which a walk may have found too few rows.

    SVS pads with row 0 at distance 0. A query that equals row 0 and another row looks the same.
    """
    if rows[:, 1:].all():
        return NO_LINES
    return np.flatnonzero(((rows[:, 1:] == 0) & (nearness[:, 1:] == 0)).any(1))


def _scale(vectors: Vectors) -> float:
    """Return 1, or the power of two that scales vectors to the most precise range of halves."""
    largest = max(abs(float(vectors.min())), abs(float(vectors.max())))
    if not largest or 0.1 < largest < 10_000:
        return 1.0
    return 2.0 ** min(-frexp(largest)[1], MAX_DOUBLINGS)


def _check_graph(folder: Path, rows: int) -> None:
    """Raise BadData for links or shapes out of range: SVS trusts its files."""
    try:
        graph, vectors, parameters = (
            tomllib.loads((folder / f"{part}.toml").read_text())["object"]
            for part in ("graph", "vectors", "parameters")
        )
        counts_and_links = 1 + int(graph["max_degree"])
        (file,) = folder.glob("graph.*.svs")
        (numbers,) = folder.glob("vectors.*.svs")
        fits = (
            graph["num_vertices"] == vectors["num_vectors"] == rows
            and 0 <= parameters["entry_point"] < rows
            and _shape_of(file) == (rows, counts_and_links)
            and _shape_of(numbers) == (rows, vectors["dims"])
            and file.stat().st_size == SVS_HEADER_BYTES + 4 * rows * counts_and_links
        )
        if fits:
            table = np.memmap(file, "<u4", "r", SVS_HEADER_BYTES, (rows, counts_and_links))
            there = np.arange(counts_and_links - 1) < table[:, :1]
            fits = bool((table[:, 0] < counts_and_links).all()) and bool(
                (table[:, 1:][there] < rows).all()
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as problem:
        raise BadData(f"{folder} is damaged ({problem}); build the index again") from None
    if not fits:
        raise BadData(f"{folder} is damaged (graph has links out of range); build the index again")


def _shape_of(file: Path) -> tuple[int, int]:
    """Return the rows and columns in the header of a table of SVS."""
    with file.open("rb") as stream:
        rows, columns = struct.unpack_from("<2Q", stream.read(SVS_HEADER_BYTES), SVS_SHAPE_OFFSET)
    return rows, columns


@dataclass(frozen=True)
class _Facts:
    """vamana.json: the factor on the vectors, the walk's metric, the sizes of SVS's files."""

    scale: float
    squares: bool
    bytes: dict[str, int]


def _checked_facts(folder: Path) -> tuple[float, bool]:
    """Return scale, and whether the graph squares. Raises BadData for a changed size of a file."""
    path = folder / FACTS
    facts = parsed(read_json(path), _Facts, path, "build the index again")
    check_file_sizes(folder, _files(folder), facts.bytes)
    return facts.scale, facts.squares


def _files(folder: Path) -> list[Path]:
    """Return SVS's files in the folder."""
    return sorted(file for part in SVS_FILES for file in folder.glob(f"{part}.*"))


def _svs() -> Any:
    """Import the library. Raises BadInput if it is not installed."""
    if not _installed():
        raise BadInput(
            "the backend vamana needs the library SVS; pip install 'retr[vamana]' (Linux on x86-64 "
            "only)"
        )
    import svs

    return svs


def _svs_metric(svs: Any, squares: bool) -> Any:
    return svs.DistanceType.L2 if squares else svs.DistanceType.MIP


def _installed() -> bool:
    return find_spec("svs") is not None

"""A graph of one layer with long links, walked greedily: SVS.

Jayaram Subramanya et al., DiskANN (NeurIPS 2019), as in Intel's Scalable Vector Search: Aguerrebere
et al., Similarity search in the blink of an eye with compressed indices (VLDB 2023). The vectors
also lie in a flat index of faiss, for what a walk does not answer.
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
from indexers.faiss.bridge import COMPARED
from indexers.graph.effort import DEFAULT_EF, settle_ef
from indexers.options import EFFORTS, check_range
from retrieval.choices import choice
from retrieval.contracts import Hits, Index, Json, Mask, Metric, Vectors
from retrieval.errors import BadData, BadInput
from retrieval.hits import Found, InMemory, answer, checked_vectors, prepared, prepared_blocks
from retrieval.runtime.threads import usable_cores
from retrieval.storage.files import native_path, read_json, write_json
from retrieval.values import resolve_options

FACTS = "vamana.json"
PARTS = ("parameters", "graph", "vectors")
"""What SVS writes, each into a folder of its own; here files of these names."""

SVS_HEADER = 1024  # bytes before the table of its binary files
SVS_SHAPE = 24  # where in the header the shape is
SVS_SETTINGS = "svs_config.toml"
FEW = 256  # distances that numpy has before faiss's threads have begun
MOST_EXTRA = 1000  # candidates of a walk, of which a mask leaves enough
MOST_DOUBLINGS = 100  # of vectors so short that their squares are nothing in float32
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Vamana:
    """`vamana`: walks a graph in which every vector knows about `degree` others, near and far.

    degree: the most links of a vector; more cost memory and raise recall.
    ef_construction: candidates kept while a vector is linked; more cost build time.
    ef: candidates kept while a query walks; more cost time and raise recall. None for 128, or for
    more where the build finds that queries need them; see `indexers.graph.effort`.
    halves: walk over numbers of half precision, which is faster, the more so for long vectors.
    refine: with halves, candidates for each neighbor that is asked for, which are compared with the
    query as they are; more raise recall where neighbors are closer to each other than half
    precision tells. With 0 distances are those to the halves, right to about three digits.

    Copies of a vector are linked once, and all of them are found: see `indexers.copies`.

    It wants the library SVS: `pip install 'retr[vamana]'`, for Linux on x86-64. Rows cannot be
    added to it.
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
            raise BadInput(
                f"SVS has no {self.metric} distance; use the backend exact or ivf for it"
            )
        check_range("degree", self.degree, 4, 1024)
        check_range("ef_construction", self.ef_construction, 1, 100_000)
        if self.ef is not None:
            check_range("ef", self.ef, 1, 100_000)
        check_range("refine", self.refine, 0, 1000)

    @classmethod
    def candidates(cls, metric: Metric | str, rows: int, dim: int, seed: int) -> list["Vamana"]:
        """Graphs of few and of many links; none where SVS is not installed."""
        metric = choice(Metric, metric)
        if metric is Metric.MANHATTAN or not _installed():
            return []
        return [cls(metric, degree=degree) for degree in (16, 32, 64)]

    def ladders(self) -> list[list["Vamana"]]:
        """By `ef`; of halves with and without comparing vectors as they are."""
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
        """An index of the vectors (n, dim), n ≥ 1, in copies. Raises BadInput for others."""
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
        """The index saved in the folder, to be searched with this `refine` and `ef`; 128 for None.

        Raises BadData if it is not there or damaged.
        """
        svs = _svs()
        flat = bridge.load(folder, faiss.IndexFlat, self.metric)
        scale, squares = _checked_facts(folder)
        _check_graph(folder, flat.ntotal)
        with TemporaryDirectory() as name:
            at = {part: Path(name) / part for part in PARTS}
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
        """Whether the graph is built and walked by squares of differences, not by products.

        Of vectors of length 1 both rank alike. Squares are more exact of halves; products are as
        exact of float32, and right for zero vectors.
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

    squares: whether SVS tells squares of differences, not products. refine: how many candidates
    for each neighbor are compared as they are; 0 where what SVS tells is taken. copies: which rows
    the vectors are.
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
        """Number of distinct vectors, where rows share some."""
        return self.copies.details

    def __len__(self) -> int:
        return self.copies.rows

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """The k nearest rows that the walk comes by, as `Index` and `Hits` say.

        With a mask that admits many rows the walk goes on until enough of what it found is among
        them; with others these are compared one by one.
        """
        nearest = self.copies.expanded(self._nearest)
        return answer(nearest, queries, k, among, dim=self.dim, rows=len(self))

    def save(self, folder: Path) -> None:
        """Write index.faiss, and what `svs.Vamana.save` writes, under names of one folder."""
        bridge.save(self.flat, folder)
        for file in _files(folder):
            file.unlink()
        with TemporaryDirectory(dir=folder) as name:
            with native_path(Path(name)) as native:
                self.graph.save(*(f"{native}/{part}" for part in PARTS))
            for place in (Path(name) / part for part in PARTS):
                for file in place.iterdir():
                    kind = "toml" if file.name == SVS_SETTINGS else file.name
                    file.rename(folder / f"{place.name}.{kind}")
        sizes: dict[str, Json] = {file.name: file.stat().st_size for file in _files(folder)}
        facts: dict[str, Json] = {"scale": self.scale, "squares": self.squares, "bytes": sizes}
        write_json(folder / FACTS, facts)
        self.copies.save(folder)

    def _nearest(self, queries: Vectors, count: int, among: Mask | None) -> Found:
        queries = prepared(queries, self.metric)
        wanted = count * max(1, self.refine)
        if among is not None:
            matching = int(np.count_nonzero(among))
            wanted = ceil(1.5 * wanted * self.copies.vectors / matching)
            if matching <= COMPARED or wanted > MOST_EXTRA:
                return bridge.compared(self.flat, queries, count, among, self.metric)
        wanted = min(wanted, self.copies.vectors)
        scaled = queries if self.scale == 1 else queries * np.float32(self.scale)
        found, nearness = self.graph.search(scaled, wanted)
        rows = found.view(np.int64)
        short = _short(rows, nearness)
        distances = self._distances(queries, rows) if self.refine else self._told(nearness, queries)
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

    def _told(self, nearness: NDArray[np.float32], queries: Vectors) -> NDArray[np.float32]:
        """What SVS told (q, n), turned in place into distances of prepared queries (q, dim)."""
        if self.scale != 1:
            nearness *= np.float32(self.scale**-2)
        if self.metric is Metric.COSINE and self.squares:
            nearness *= np.float32(0.5)
            nearness[~queries.any(axis=1)] = 1  # zero vectors are at right angles to everything
            return nearness
        return bridge.to_distances(nearness, self.metric)

    def _distances(self, queries: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(q, n): the distances of prepared queries (q, dim) to rows (q, n)."""
        if rows.size > FEW:
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
    """The lines in which a walk may have found fewer rows than there is room for.

    SVS fills up with row 0 at distance 0, and so does row 0 look where the query equals it and is
    not alone in that.
    """
    if rows[:, 1:].all():
        return NONE
    return np.flatnonzero(((rows[:, 1:] == 0) & (nearness[:, 1:] == 0)).any(1))


def _scale(vectors: Vectors) -> float:
    """1, or the power of two that brings the vectors to where halves are most exact."""
    largest = max(abs(float(vectors.min())), abs(float(vectors.max())))
    if not largest or 0.1 < largest < 10_000:
        return 1.0
    return 2.0 ** min(-frexp(largest)[1], MOST_DOUBLINGS)


def _check_graph(folder: Path, rows: int) -> None:
    """Raise BadData where svs would walk out of its graph or vectors, as it trusts its files."""
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
            and file.stat().st_size == SVS_HEADER + 4 * rows * counts_and_links
        )
        if fits:
            table = np.memmap(file, "<u4", "r", SVS_HEADER, (rows, counts_and_links))
            there = np.arange(counts_and_links - 1) < table[:, :1]
            fits = bool((table[:, 0] < counts_and_links).all()) and bool(
                (table[:, 1:][there] < rows).all()
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as problem:
        raise BadData(f"{folder} is damaged ({problem}); build the index again") from None
    if not fits:
        raise BadData(f"{folder} is damaged (its graph leads astray); build the index again")


def _shape_of(file: Path) -> tuple[int, int]:
    """The rows and columns in the header of a table of svs."""
    with file.open("rb") as stream:
        rows, columns = struct.unpack_from("<2Q", stream.read(SVS_HEADER), SVS_SHAPE)
    return rows, columns


def _checked_facts(folder: Path) -> tuple[float, bool]:
    """The scale, and whether the graph is walked by squares.

    Raises BadData unless the files are as long as they were, which SVS trusts.
    """
    path = folder / FACTS
    try:
        facts: Any = read_json(path)
        scale, squares, sizes = float(facts["scale"]), facts["squares"], dict(facts["bytes"])
    except (KeyError, TypeError, ValueError):
        raise BadData(f"{path} is not there or damaged; build the index again") from None
    there = {file.name: file.stat().st_size for file in _files(folder)}
    for name in sorted({*sizes, *there}):
        if sizes.get(name) != there.get(name):
            raise BadData(
                f"{folder / name} has {there.get(name, 0):,} of {sizes.get(name, 0):,} bytes; "
                "build the index again"
            )
    return scale, bool(squares)


def _files(folder: Path) -> list[Path]:
    """What SVS wrote."""
    return sorted(file for part in PARTS for file in folder.glob(f"{part}.*"))


def _svs() -> Any:
    """The library. Raises BadInput where it is not installed."""
    if not _installed():
        raise BadInput(
            "the backend vamana wants the library SVS; pip install 'retr[vamana]', which Linux on "
            "x86-64 has"
        )
    import svs

    return svs


def _svs_metric(svs: Any, squares: bool) -> Any:
    return svs.DistanceType.L2 if squares else svs.DistanceType.MIP


def _installed() -> bool:
    return find_spec("svs") is not None

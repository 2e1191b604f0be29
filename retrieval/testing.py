"""The contract as a test: what every encoder and every indexer must do, plug-ins included.

A plug-in's test file is two lines:

    def test_contract() -> None:
        check_indexer(MyIndexer())

Both functions raise AssertionError with a message that says what was promised. They need
nothing but the plug-in: the data is made here, small, from fixed seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from retrieval.contracts import (
    Encoder,
    Framing,
    Growing,
    Hits,
    Images,
    Index,
    Indexer,
    Mask,
    Metric,
    Shrinking,
    Streaming,
    Tunable,
    Vectors,
)
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.registry import open_encoder

ROWS, DIM, QUERIES = 1200, 24, 40
FEW = 7  # rows that a narrow mask admits
LEAST_RECALL = 0.9  # of 10 neighbors, on data of 4 intrinsic dimensions
SAME = 0.999  # the least cosine between embeddings of one image from two batches


def check_indexer(indexer: Indexer) -> None:
    """Check a backend with its metric and options against `Indexer`, `Index` and `Hits`."""
    _check_settings(indexer)
    database, queries = _easy_data()
    untouched = database.copy(), queries.copy()
    index = indexer.build(database)
    assert np.array_equal(database, untouched[0]), "build must leave the vectors as they are"
    assert len(index) == ROWS, f"the index must have {ROWS} rows, has {len(index)}"
    assert index.dim == DIM, f"the index must have dimension {DIM}, has {index.dim}"

    _check_search(index, indexer.metric, database, queries)
    assert np.array_equal(queries, untouched[1]), "search must leave the queries as they are"
    _check_masks(index, indexer.metric, database, queries)
    _check_saving(indexer, index, queries)
    _check_refusals(indexer, index, queries)
    if isinstance(indexer, Tunable):
        _check_tuning(indexer, queries)
    _check_odd_data(indexer)
    if isinstance(indexer, Streaming):
        _check_blocks(indexer, database, queries)
    if isinstance(index, Growing):
        _check_growth(indexer, database, queries)
    if isinstance(index, Shrinking):
        _check_deletion(indexer, database, queries)


class _Parts:
    """Blocks of unlike sizes, one of them empty; they lie in memory that cannot be written to."""

    def __init__(self, vectors: Vectors) -> None:
        self.rows, self.dim = vectors.shape
        self.blocks = np.split(vectors.copy(), (1, 1, 500))
        for block in self.blocks:
            block.flags.writeable = False

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.blocks)


def _check_tuning(indexer: Tunable, queries: Vectors) -> None:
    """Options that an open index is given work as those that it is loaded with."""
    database = np.random.default_rng(5).standard_normal((ROWS, DIM), dtype=np.float32)
    index = indexer.build(database)
    for ladder in indexer.ladders():
        for rung in (ladder[0], ladder[-1], ladder[0]):
            rung.apply(index)
            with TemporaryDirectory() as name:
                index.save(Path(name))
                expected = rung.load(Path(name)).search(queries, 10)
            found = index.search(queries, 10)
            same = np.array_equal(found.rows, expected.rows)
            assert same, f"with {rung} applied, a search finds other rows than when loaded with it"


def _check_blocks(indexer: Streaming, database: Vectors, queries: Vectors) -> None:
    index = indexer.build_from(_Parts(database))
    assert len(index) == ROWS, f"built from blocks, the index has {len(index)} rows"
    _check_search(index, indexer.metric, database, queries)
    broken = database.copy()
    broken[700, 3] = np.nan
    _expect(BadInput, partial(indexer.build_from, _Parts(broken)), "blocks with NaN")


def check_encoder(encoder: Encoder) -> None:
    """Check an encoder against `Encoder`; it is opened once more by its name."""
    assert isinstance(encoder, Encoder), f"{encoder!r} lacks attributes of Encoder"
    assert isinstance(encoder.dim, int) and encoder.dim >= 1, f"dim is {encoder.dim!r}"
    assert isinstance(encoder.metric, Metric), f"metric is {encoder.metric!r}"
    assert isinstance(encoder.framing, Framing), f"framing is {encoder.framing!r}"
    assert _is_json(dict(encoder.config)), f"config must be JSON, is {encoder.config!r}"
    digits = set(encoder.fingerprint)
    assert len(encoder.fingerprint) == 64 and digits <= set("0123456789abcdef"), (
        f"the fingerprint must be a sha256 in hexadecimal, is {encoder.fingerprint!r}"
    )

    images = _images(7, encoder.framing.side)
    untouched = images.copy()
    vectors = encoder.encode(images)
    assert np.array_equal(images, untouched), "encode must leave the images as they are"
    _check_vectors(vectors, 7, encoder)
    _check_vectors(encoder.encode(images[:0]), 0, encoder)
    assert np.array_equal(encoder.encode(images), vectors), "the same batch, another embedding"
    assert _spread(vectors) > 0, "different images must not all have the same embedding"

    alone = []
    for one in range(7):
        single = encoder.encode(images[one : one + 1])
        _check_vectors(single, 1, encoder)
        alone.append(single)
    _check_same(vectors, np.concatenate(alone), "encoded one by one")
    backwards = encoder.encode(np.ascontiguousarray(images[::-1]))
    _check_same(vectors, backwards[::-1], "encoded in another order")

    again = open_encoder(encoder.name)
    assert again.name == encoder.name, f"'{encoder.name}' opens an encoder named '{again.name}'"
    assert again.fingerprint == encoder.fingerprint, "opened again, it has another fingerprint"
    _check_same(vectors, again.encode(images), "opened again")

    side = encoder.framing.side
    for shape in ((2, side, side), (2, side + 1, side, 3), (2, 3, side, side), (2, side, side, 1)):
        wrong = np.zeros(shape, np.uint8)
        _expect(BadInput, partial(encoder.encode, wrong), f"images of shape {shape}")


def _check_settings(indexer: Indexer) -> None:
    kind = type(indexer)
    assert is_dataclass(indexer), f"{kind.__name__} must be a dataclass"
    assert cast(Any, kind).__dataclass_params__.frozen, f"{kind.__name__} must be frozen"
    options = {field.name: getattr(indexer, field.name) for field in fields(indexer)}
    for option, value in options.items():
        scalar = value is None or isinstance(value, str | int | float | bool)
        assert scalar, f"option {option} must be a JSON scalar, is {value!r}"
    assert isinstance(indexer.metric, Metric), f"metric is {indexer.metric!r}"
    assert isinstance(kind(), Indexer), f"{kind.__name__}() must be a sensible indexer"
    assert kind(**options) == indexer, "the options must be enough to make the same indexer"
    unknown = indexer.search_options - set(options)
    assert not unknown, f"search_options names no field: {sorted(unknown)}"


def _check_search(index: Index, metric: Metric, database: Vectors, queries: Vectors) -> None:
    truth = _distances(queries, database, metric)
    hits = index.search(queries, 10)
    _check_hits(hits, truth, 10, ROWS, metric)
    recall = _recall(hits, truth)
    assert recall >= LEAST_RECALL, f"recall@10 on easy data is {recall:.3f} < {LEAST_RECALL}"
    for k in (1, ROWS - 1, ROWS, ROWS + 5):
        _check_hits(index.search(queries[:3], k), truth[:3], k, ROWS, metric)
    _check_hits(index.search(queries[:0], 4), truth[:0], 4, ROWS, metric)
    for one in range(5):
        single = index.search(queries[one : one + 1], 10)
        _check_hits(single, truth[one : one + 1], 10, ROWS, metric)
        assert np.allclose(single.distances[0], hits.distances[one], rtol=1e-3, atol=1e-4), (
            f"query {one} alone is answered differently than among others"
        )
    wide = np.asfortranarray(queries.astype(np.float64))
    _check_hits(index.search(cast(Vectors, wide), 10), truth, 10, ROWS, metric)


def _check_masks(index: Index, metric: Metric, database: Vectors, queries: Vectors) -> None:
    truth = _distances(queries, database, metric)
    generator = np.random.default_rng(4)
    few = np.zeros(ROWS, np.bool_)
    few[generator.choice(ROWS, FEW, replace=False)] = True
    masks = {
        "no row": np.zeros(ROWS, np.bool_),
        "one row": np.arange(ROWS) == ROWS // 2,
        "few rows": few,
        "a third": generator.random(ROWS) < 1 / 3,
        "most": generator.random(ROWS) < 0.9,
        "every row": np.ones(ROWS, np.bool_),
    }
    for name, mask in masks.items():
        untouched = mask.copy()
        matching = int(mask.sum())
        filtered = np.where(mask, truth, np.inf)
        for k in (1, 10, ROWS + 1):
            hits = index.search(queries, k, mask)
            _check_hits(hits, filtered, k, matching, metric)
        recall = _recall(index.search(queries, 10, mask), filtered)
        assert recall >= LEAST_RECALL, (
            f"recall@10 among {name} is {recall:.3f} < {LEAST_RECALL}: the mask must steer the"
            " search, not thin out its result"
        )
        assert np.array_equal(mask, untouched), "search must leave the mask as it is"


def _check_saving(indexer: Indexer, index: Index, queries: Vectors) -> None:
    expected = index.search(queries, 10)
    with TemporaryDirectory() as name:
        folder = Path(name)
        _expect(BadData, partial(indexer.load, folder), "load from an empty folder")
        index.save(folder)
        files = sorted(path for path in folder.iterdir())
        assert files, "save must write at least one file"
        loaded = indexer.load(folder)
        assert (len(loaded), loaded.dim) == (len(index), index.dim), "load: other rows or dim"
        actual = loaded.search(queries, 10)
        assert np.array_equal(actual.rows, expected.rows), "the loaded index finds other rows"
        assert np.array_equal(actual.distances, expected.distances), "… at other distances"
        index.save(folder)  # over the files of the last save
        assert sorted(folder.iterdir()) == files, "saving again must replace the files"
        for changed in _with_other_search_options(indexer):
            hits = changed.load(folder).search(queries, 10)
            assert (hits.rows >= 0).all(), f"loaded as {changed}, the index finds too few rows"
        for file in files:
            file.write_bytes(file.read_bytes()[:50])
        _expect(BadData, partial(indexer.load, folder), "load of files that were cut off")


def _with_other_search_options(indexer: Indexer) -> list[Indexer]:
    """The indexer with each numeric search option at least once smaller and once greater."""
    settings: Any = indexer
    changed = []
    for option in sorted(indexer.search_options):
        value = getattr(indexer, option)
        if isinstance(value, int) and not isinstance(value, bool):
            changed += [replace(settings, **{option: new}) for new in (1, 2 * value + 1)]
    return changed


def _check_refusals(indexer: Indexer, index: Index, queries: Vectors) -> None:
    _expect(Mismatch, partial(index.search, queries[:, :-1], 3), "queries of a lower dimension")
    _expect(BadInput, partial(index.search, queries[0], 3), "a query that is no matrix")
    _expect(BadInput, partial(index.search, queries, 0), "k = 0")
    short = np.ones(ROWS - 1, np.bool_)
    _expect(Mismatch, partial(index.search, queries, 3, short), "a mask of another length")
    numbers = cast(Mask, np.arange(ROWS))
    _expect(BadInput, partial(index.search, queries, 3, numbers), "a mask that is not of bool")
    _expect(BadInput, partial(indexer.build, queries[:0]), "no vectors")
    for bad in (np.nan, np.inf):
        spoilt = queries.copy()
        spoilt[2, 1] = bad
        _expect(BadInput, partial(indexer.build, spoilt), f"a vector with {bad}")
        _expect(BadInput, partial(index.search, spoilt, 3), f"a query with {bad}")


def _check_odd_data(indexer: Indexer) -> None:
    """Few rows, duplicates, rows that are all equal, zero vectors: where libraries stumble."""
    generator = np.random.default_rng(5)
    some = generator.standard_normal((6, 8), dtype=np.float32)
    zeros = np.zeros((4, 8), np.float32)
    data = {
        "one row": some[:1],
        "two rows": some[:2],
        "each row three times": np.tile(some, (3, 1)),
        "equal rows": np.tile(some[:1], (150, 1)),
        "zero vectors": np.tile(zeros, (20, 1)),
        "some zero vectors": np.concatenate([some, zeros, -some]),
        "tiny and huge": np.concatenate([some * 1e-6, some * 1e6]).astype(np.float32),
    }
    queries = np.concatenate([some[:2], zeros[:1]])
    for name, database in data.items():
        index = indexer.build(database)
        rows = len(database)
        assert len(index) == rows, f"{name}: the index must have {rows} rows, has {len(index)}"
        truth = _distances(queries, database, indexer.metric)
        for k in (1, 2, rows, rows + 3):
            _check_hits(index.search(queries, k), truth, k, rows, indexer.metric)


def _check_growth(indexer: Indexer, database: Vectors, queries: Vectors) -> None:
    """An index that was built of some rows and got the others, also behind a save and a load."""
    index = cast(Growing, indexer.build(database[:700]))
    untouched = database.copy()
    index.add(database[700:1100])
    assert len(index) == 1100, f"700 rows and 400 more are 1100, the index has {len(index)}"
    for bad, error in ((queries[:, :-1], Mismatch), (queries[:0], BadInput)):
        _expect(error, partial(index.add, bad), f"adding vectors of shape {bad.shape}")
    assert len(index) == 1100, "what was refused must not be added"
    with TemporaryDirectory() as name:
        index.save(Path(name))
        loaded = cast(Growing, indexer.load(Path(name)))
    loaded.add(database[1100:])
    assert np.array_equal(database, untouched), "add must leave the vectors as they are"
    _check_search(loaded, indexer.metric, database, queries)


def _check_deletion(indexer: Indexer, database: Vectors, queries: Vectors) -> None:
    """Rows that are gone are not found, and those behind them have moved up."""
    generator = np.random.default_rng(7)
    more = np.concatenate([database, generator.permutation(database)[:400]])
    order = generator.permutation(len(more))
    gone = np.sort(np.flatnonzero(order >= ROWS))
    index = cast(Shrinking, indexer.build(np.ascontiguousarray(more[order])))
    index.delete(gone)
    kept = np.ascontiguousarray(more[np.delete(order, gone)])
    assert len(index) == ROWS, f"{len(more)} rows less {len(gone)} are {ROWS}, not {len(index)}"
    with TemporaryDirectory() as name:
        index.save(Path(name))
        loaded = indexer.load(Path(name))
    for each in (index, loaded):
        _check_search(each, indexer.metric, kept, queries)


def _check_hits(
    hits: Hits, truth: NDArray[np.float64], k: int, matching: int, metric: Metric
) -> None:
    """Check form, order and distances of hits, given all true distances (q, rows).

    A row that the mask excludes has a true distance of +inf.
    """
    shape = (len(truth), k)
    assert hits.rows.shape == shape, f"rows must have shape {shape}, have {hits.rows.shape}"
    assert hits.distances.shape == shape, f"distances must have shape {shape}"
    assert hits.rows.dtype == np.int64, f"rows must be int64, are {hits.rows.dtype}"
    assert hits.distances.dtype == np.float32, f"distances must be float32: {hits.distances.dtype}"

    found = hits.rows >= 0
    wanted = np.arange(k) < min(k, matching)
    assert np.array_equal(found, np.broadcast_to(wanted, shape)), (
        f"of {matching} rows that may be found, k={k} must find {min(k, matching)} per query,"
        f" then pad; found {found.sum(axis=1).tolist()}"
    )
    assert (hits.rows[~found] == -1).all(), "where nothing was found the row must be -1"
    assert (hits.distances[~found] == np.inf).all(), "where the row is -1 the distance must be inf"
    for line, there in zip(hits.rows, found, strict=True):
        assert len(set(line[there].tolist())) == there.sum(), "a row was found twice"

    later, sooner = hits.distances[:, 1:], hits.distances[:, :-1]
    assert (later >= sooner).all(), "hits must be sorted by distance"
    equal = (later == sooner) & found[:, 1:]
    lower_first = hits.rows[:, 1:] > hits.rows[:, :-1]
    assert lower_first[equal].all(), "among equal distances the lower row must come first"

    lines = np.nonzero(found)[0]
    actual = hits.distances[found].astype(np.float64)
    expected = truth[lines, hits.rows[found]]
    assert np.isfinite(expected).all(), "a row was found that the mask excludes"
    _check_distances(actual, expected, truth, metric)


def _check_distances(
    actual: NDArray[np.float64],
    expected: NDArray[np.float64],
    truth: NDArray[np.float64],
    metric: Metric,
) -> None:
    if metric is Metric.EUCLIDEAN:
        # Libraries compute squares, to a precision that depends on the greatest of them.
        actual, expected, truth = actual**2, expected**2, truth**2
    greatest = np.abs(truth[np.isfinite(truth)]).max(initial=1.0)
    close = np.isclose(actual, expected, rtol=1e-4, atol=2e-6 * greatest)
    assert close.all(), (
        f"{metric} distances are wrong: {actual[~close][:3].tolist()} should be"
        f" {expected[~close][:3].tolist()}{' (squared)' if metric is Metric.EUCLIDEAN else ''}"
    )


def _recall(hits: Hits, truth: NDArray[np.float64]) -> float:
    """The share of the hits no farther than the k-th true neighbor, of those there could be."""
    k = hits.rows.shape[1]
    farthest = np.sort(truth, axis=1)[:, :k]
    there = np.isfinite(farthest)
    if not there.any():
        return 1.0
    last = np.where(there, farthest, -np.inf).max(axis=1)
    good = hits.distances <= (last + 1e-3 * np.abs(last) + 1e-6)[:, None]
    return float(good.sum() / there.sum())


def _distances(queries: Vectors, database: Vectors, metric: Metric) -> NDArray[np.float64]:
    """The distances (q, n) as `Metric` defines them, in double precision."""
    a, b = queries.astype(np.float64), database.astype(np.float64)
    match metric:
        case Metric.EUCLIDEAN:
            return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=2))
        case Metric.MANHATTAN:
            return np.asarray(np.abs(a[:, None] - b[None]).sum(axis=2))
        case Metric.INNER_PRODUCT:
            return -(a @ b.T)
        case Metric.COSINE:
            lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
            cosines = np.zeros_like(lengths)  # zero vectors are at right angles to everything
            np.divide(a @ b.T, lengths, out=cosines, where=lengths > 0)
            return np.asarray(1 - cosines)


def _easy_data() -> tuple[Vectors, Vectors]:
    """A database and other queries from a sphere of 4 dimensions, turned into 24.

    On a sphere all four metrics nearly agree, so that no backend has an excuse.
    """
    generator = np.random.default_rng(3)
    turn = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0][:5]
    points = generator.standard_normal((ROWS + QUERIES, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    vectors = (points @ turn).astype(np.float32)
    return np.ascontiguousarray(vectors[:ROWS]), np.ascontiguousarray(vectors[ROWS:])


def _images(count: int, side: int) -> Images:
    """Images of large coloured tiles, each different."""
    generator = np.random.default_rng(6)
    tiles = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    grid = np.arange(side) * 4 // side
    return np.ascontiguousarray(tiles[:, grid][:, :, grid])


def _check_vectors(vectors: Vectors, count: int, encoder: Encoder) -> None:
    wanted = (count, encoder.dim)
    assert vectors.shape == wanted, f"embeddings must have shape {wanted}, have {vectors.shape}"
    assert vectors.dtype == np.float32, f"embeddings must be float32, are {vectors.dtype}"
    assert vectors.flags.c_contiguous, "embeddings must be C-contiguous"
    assert np.isfinite(vectors).all(), "embeddings must be finite"


def _check_same(vectors: Vectors, others: Vectors, how: str) -> None:
    """Check that two embeddings of each image are the same, up to rounding."""
    lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(others, axis=1)
    cosines = (vectors * others).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-30)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    least = float(np.where(both_zero, 1, cosines).min())
    assert least > SAME, f"{how}, an image has another embedding: cosine {least:.5f}"
    assert np.allclose(lengths[0], lengths[1], rtol=0.02), f"{how}, embeddings change in length"


def _spread(vectors: Vectors) -> float:
    return float(np.abs(vectors - vectors[0]).max())


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def _expect(error: type[BadInput], call: Callable[[], object], what: str) -> None:
    """Check that the call raises this error, with a message of one line."""
    try:
        call()
    except error as raised:
        message = str(raised)
        assert message and "\n" not in message, f"{what}: the message must be one line: {message}"
        return
    raise AssertionError(f"{what} must raise {error.__name__}")

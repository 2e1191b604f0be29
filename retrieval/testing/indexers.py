"""Check the contract of backends and their indices."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from retrieval.contracts import (
    Growing,
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
from retrieval.testing.hits import check_hits, recall_of, true_distances
from retrieval.testing.raising import expect_error

ROWS, DIM, QUERIES = 1200, 24, 40
NARROW_MASK_ROWS = 7
MIN_RECALL = 0.9  # recall@10, on data of 4 intrinsic dimensions


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


class _ReadOnlyBlocks:
    """Blocks of different sizes, one of them empty, in read-only memory."""

    def __init__(self, vectors: Vectors) -> None:
        self.rows, self.dim = vectors.shape
        self.blocks = np.split(vectors.copy(), (1, 1, 500))
        for block in self.blocks:
            block.flags.writeable = False

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.blocks)


def _check_tuning(indexer: Tunable, queries: Vectors) -> None:
    """Check that options work the same when applied to an open index and when loaded with it."""
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
    index = indexer.build_from(_ReadOnlyBlocks(database))
    assert len(index) == ROWS, f"built from blocks, the index has {len(index)} rows"
    _check_search(index, indexer.metric, database, queries)
    broken = database.copy()
    broken[700, 3] = np.nan
    expect_error(BadInput, partial(indexer.build_from, _ReadOnlyBlocks(broken)), "blocks with NaN")


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
    truth = true_distances(queries, database, metric)
    hits = index.search(queries, 10)
    check_hits(hits, truth, 10, ROWS, metric)
    recall = recall_of(hits, truth)
    assert recall >= MIN_RECALL, f"recall@10 on easy data is {recall:.3f} < {MIN_RECALL}"
    for k in (1, ROWS - 1, ROWS, ROWS + 5):
        check_hits(index.search(queries[:3], k), truth[:3], k, ROWS, metric)
    check_hits(index.search(queries[:0], 4), truth[:0], 4, ROWS, metric)
    for one in range(5):
        single = index.search(queries[one : one + 1], 10)
        check_hits(single, truth[one : one + 1], 10, ROWS, metric)
        assert np.allclose(single.distances[0], hits.distances[one], rtol=1e-3, atol=1e-4), (
            f"query {one} alone is answered differently than among others"
        )
    wide = np.asfortranarray(queries.astype(np.float64))
    check_hits(index.search(cast(Vectors, wide), 10), truth, 10, ROWS, metric)


def _check_masks(index: Index, metric: Metric, database: Vectors, queries: Vectors) -> None:
    truth = true_distances(queries, database, metric)
    generator = np.random.default_rng(4)
    few = np.zeros(ROWS, np.bool_)
    few[generator.choice(ROWS, NARROW_MASK_ROWS, replace=False)] = True
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
            check_hits(hits, filtered, k, matching, metric)
        recall = recall_of(index.search(queries, 10, mask), filtered)
        assert recall >= MIN_RECALL, (
            f"recall@10 among {name} is {recall:.3f} < {MIN_RECALL}: the mask must steer the"
            " search, not thin out its result"
        )
        assert np.array_equal(mask, untouched), "search must leave the mask as it is"


def _check_saving(indexer: Indexer, index: Index, queries: Vectors) -> None:
    expected = index.search(queries, 10)
    with TemporaryDirectory() as name:
        folder = Path(name)
        expect_error(BadData, partial(indexer.load, folder), "load from an empty folder")
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
        expect_error(BadData, partial(indexer.load, folder), "load of files that were cut off")


def _with_other_search_options(indexer: Indexer) -> list[Indexer]:
    """Return copies of the indexer, each with one numeric search option smaller or larger."""
    settings: Any = indexer
    changed = []
    for option in sorted(indexer.search_options):
        value = getattr(indexer, option)
        if isinstance(value, int) and not isinstance(value, bool):
            changed += [replace(settings, **{option: new}) for new in (1, 2 * value + 1)]
    return changed


def _check_refusals(indexer: Indexer, index: Index, queries: Vectors) -> None:
    expect_error(
        Mismatch, partial(index.search, queries[:, :-1], 3), "queries of a lower dimension"
    )
    expect_error(BadInput, partial(index.search, queries[0], 3), "a query that is not a matrix")
    expect_error(BadInput, partial(index.search, queries, 0), "k = 0")
    short = np.ones(ROWS - 1, np.bool_)
    expect_error(Mismatch, partial(index.search, queries, 3, short), "a mask of another length")
    numbers = cast(Mask, np.arange(ROWS))
    expect_error(BadInput, partial(index.search, queries, 3, numbers), "a mask that is not of bool")
    expect_error(BadInput, partial(indexer.build, queries[:0]), "no vectors")
    for bad in (np.nan, np.inf):
        spoilt = queries.copy()
        spoilt[2, 1] = bad
        expect_error(BadInput, partial(indexer.build, spoilt), f"a vector with {bad}")
        expect_error(BadInput, partial(index.search, spoilt, 3), f"a query with {bad}")


def _check_odd_data(indexer: Indexer) -> None:
    """Check data that libraries often fail on: few rows, duplicates, equal rows, zero vectors."""
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
        truth = true_distances(queries, database, indexer.metric)
        for k in (1, 2, rows, rows + 3):
            check_hits(index.search(queries, k), truth, k, rows, indexer.metric)


def _check_growth(indexer: Indexer, database: Vectors, queries: Vectors) -> None:
    """Check an index to which rows are added after the build, and after a save and a load."""
    index = cast(Growing, indexer.build(database[:700]))
    untouched = database.copy()
    index.add(database[700:1100])
    assert len(index) == 1100, f"700 rows and 400 more are 1100, the index has {len(index)}"
    for bad, error in ((queries[:, :-1], Mismatch), (queries[:0], BadInput)):
        expect_error(error, partial(index.add, bad), f"adding vectors of shape {bad.shape}")
    assert len(index) == 1100, "vectors that raise an error must not be added"
    with TemporaryDirectory() as name:
        index.save(Path(name))
        loaded = cast(Growing, indexer.load(Path(name)))
    loaded.add(database[1100:])
    assert np.array_equal(database, untouched), "add must leave the vectors as they are"
    _check_search(loaded, indexer.metric, database, queries)


def _check_deletion(indexer: Indexer, database: Vectors, queries: Vectors) -> None:
    """Check that deleted rows are not found, and that later rows move up."""
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


def _easy_data() -> tuple[Vectors, Vectors]:
    """Return a database, and other queries, on a sphere of 4 dimensions rotated into 24.

    On a sphere, all four metrics nearly agree, so that every backend reaches a high recall.
    """
    generator = np.random.default_rng(3)
    turn = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0][:5]
    points = generator.standard_normal((ROWS + QUERIES, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    vectors = (points @ turn).astype(np.float32)
    return np.ascontiguousarray(vectors[:ROWS]), np.ascontiguousarray(vectors[ROWS:])

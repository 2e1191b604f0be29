"""Check whether retr became slower: `python -m benchmarks.speed.guard --help`.

Each measure is a ratio to the bare library, or to a lower bound of retr's time. Both alternate in
one run: a slower machine slows both. A measure counts as slower if the median of its ratios exceeds
the saved one by more than the scatter of both runs. It is then repeated: other work on the machine
ends, a slower program stays slow.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.speed import cold, encode, overhead
from benchmarks.suite import machine
from retrieval import Searcher, build_index, open_embeddings, open_encoder
from retrieval.contracts import Metric
from retrieval.embedding.default_encoder import OFFLINE_PHOTO_ENCODER
from retrieval.embedding.encode import encode_source
from retrieval.embedding.onnx_cache import keep_export
from retrieval.images import Source, open_source
from retrieval.quality.evaluation import evaluate
from retrieval.quality.labelled import Labelled
from retrieval.registry import make_indexer

BASELINE = Path(__file__).parent / "guard.json"
MAX_TRIES = 3  # tries of a measure that seems slower
MIN_CHANGE = 0.10  # share of a ratio that counts as slower
GUARDED_PHOTOGRAPHS = 150
MIN_SCATTERS = 3.0  # interquartile ranges, to count as slower

Ratios = Mapping[str, Sequence[float]]


def searches() -> Ratios:
    """Return the ratios of `Index.search` to the library's own call, for a batch."""
    found: Any = overhead.measure(
        rows=20_000, dim=128, batch=500, k=10, repeats=9, backends=("exact", "ivf", "hnsw")
    )
    return {
        f"search, {backend}": np.divide(times["retr_ms"], times["library_ms"]).tolist()
        for backend, times in found.items()
    }


def walking() -> Ratios:
    """Return the ratios of `hnsw-pca` to hnswlib's own call, for a batch over the same vectors."""
    vectors = overhead.clustered(20_500, 128, seed=0)
    queries, database = vectors[:500], vectors[500:]
    ours = make_indexer("hnsw-pca", {"ef": 64}).build(database)
    theirs: Any = make_indexer("hnsw", {"ef": 64}).build(database)
    ratios = []
    for _ in range(10):
        started = time.perf_counter()
        ours.search(queries, 10)
        between = time.perf_counter()
        theirs.graph.knn_query(queries, 10)
        ratios.append((between - started) / (time.perf_counter() - between))
    return {"search, hnsw-pca to hnswlib": ratios[1:]}


def naming() -> Ratios:
    """Return the time of `Searcher.search` for one vector relative to `Index.search`."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        encode_source(open_source("digits"), open_encoder("siamese-quick"), place / "embeddings")
        embeddings = open_embeddings(place / "embeddings")
        build_index([embeddings], "hnsw", place / "index")
        searcher = Searcher.open(place / "index")
        queries = embeddings.read()[1][:500]
    ratios = []
    for _ in range(10):
        named, bare = [], []
        for row in range(len(queries)):
            query = queries[row : row + 1]
            started = time.perf_counter()
            searcher.search(query, 10)
            between = time.perf_counter()
            searcher.opened.index.search(query, 10)
            named.append(between - started)
            bare.append(time.perf_counter() - between)
        ratios.append(float(np.median(named) / np.median(bare)))
    return {"search, Searcher to Index": ratios[1:]}


def encoding() -> Ratios:
    """Return the ratios of `retr encode` on scikit-learn's digits, see `_of_parts`."""
    return _of_parts("siamese-quick", open_source("digits", limit=1000), "siamese-quick")


def photographs() -> Ratios:
    """Return the ratios of `retr encode` on JPEG files, see `_of_parts`."""
    with TemporaryDirectory() as folder:
        encode.write_photographs(Path(folder), GUARDED_PHOTOGRAPHS)
        return _of_parts(OFFLINE_PHOTO_ENCODER, open_source(folder), "photographs")


def _of_parts(encoder: str, source: Source, name: str) -> Ratios:
    """Return the times of `retr encode` relative to its parts, and of the network to torch's."""
    ways = ("bare", "torch", "encode", "decode")
    found: Any = encode.measure(encoder, source, repeats=5, ways=ways)
    bare, torch, whole, decode = (np.array(found[way]) for way in ways)
    return {
        f"encode, {name}": ((1 / whole) / (1 / bare + 1 / decode)).tolist(),
        f"network to torch, {name}": (torch / bare).tolist(),
    }


def cold_search() -> Ratios:
    """Return the ratios of a search from a cold process to the imports that it needs."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        encode.write_photographs(place / "photos", 20)
        encoder = open_encoder("siamese-quick")
        keep_export(encoder)
        encode_source(open_source(str(place / "photos")), encoder, place / "embeddings")
        build_index([open_embeddings(place / "embeddings")], "exact", place / "index")
        image = next((place / "photos").iterdir())
        found: Any = cold.measure(place / "index", image, k=10, repeats=9)["seconds"]
    searches, imports = (found[way]["repeats"] for way in ("search", "import_all_needed"))
    return {"cold search to its imports": np.divide(searches, imports).tolist()}


def help_page() -> Ratios:
    """Return the ratios of `retr --help` to the import of its command-line library."""
    least, ours = (sys.executable, "-c", "import typer"), (*cold.RETR, "--help")
    ratios = [cold.seconds(ours) / cold.seconds(least) for _ in range(16)]
    return {"retr --help": ratios[1:]}  # the first reads files that are cached later


def evaluation() -> Ratios:
    """Return the ratios of the full evaluation to the matrix product that it needs."""
    rng = np.random.default_rng(0)
    vectors = overhead.clustered(22_000, 128, seed=0)
    ids = [str(row) for row in range(len(vectors))]
    labels = [str(label) for label in rng.integers(10, size=len(vectors))]
    parts = slice(0, 2000), slice(2000, None)
    queries, database = (Labelled(vectors[part], ids[part], labels[part]) for part in parts)
    found = []
    for _ in range(6):
        started = time.perf_counter()
        evaluate(queries, database, Metric.COSINE)
        between = time.perf_counter()
        _ = queries.vectors @ database.vectors.T
        found.append((between - started) / (time.perf_counter() - between))
    return {"evaluation": found[1:]}


MEASURES: Sequence[Callable[[], Ratios]] = (
    searches,
    walking,
    naming,
    encoding,
    photographs,
    cold_search,
    help_page,
    evaluation,
)


def middle(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the interquartile range as a share of it."""
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return float(median), float((high - low) / median)


def slower(now: Sequence[float], before: Sequence[float]) -> bool:
    """Return whether the median rose by more than both runs' scatter, and by more than a tenth."""
    (median, scatter), (was, scattered) = middle(now), middle(before)
    return median > was * (1 + max(MIN_CHANGE, MIN_SCATTERS * max(scatter, scattered)))


def compare(baseline: Ratios, measures: Sequence[Callable[[], Ratios]] = MEASURES) -> list[str]:
    """Return the names of measures that are slower than the baseline in each try.

    Prints a line for each measure.
    """
    found: list[str] = []
    for measure in measures:
        suspects = set(baseline)
        for _ in range(MAX_TRIES):
            ratios = measure()
            suspects &= {n for n in ratios.keys() & suspects if slower(ratios[n], baseline[n])}
            if not suspects:
                break
        for name, taken in ratios.items():
            median, scatter = middle(taken)
            was, verdict = "not known", "not compared; --save keeps it"
            if name in baseline:
                was = f"{middle(baseline[name])[0]:.3f}"
                verdict = "slower" if name in suspects else "as fast"
            print(f"{name:28} {median:8.3f} ± {100 * scatter:2.0f}%  before {was:>9}  {verdict}")
        found.extend(sorted(suspects))
    return found


def main() -> int:
    """Compare with the baseline. Exit code 1 if a measure is slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--save", action="store_true", help="make this run the baseline")
    given = parser.parse_args()
    if given.save:
        ratios = {name: [*taken] for measure in MEASURES for name, taken in measure().items()}
        document = {"ratios": ratios, "machine": machine.describe()}
        given.baseline.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return 0
    if not given.baseline.is_file():
        parser.error(f"{given.baseline} not found; write it with --save")
    worse = compare(json.loads(given.baseline.read_text(encoding="utf-8"))["ratios"])
    if worse:
        print(f"slower than before: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

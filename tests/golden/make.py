"""Write the golden folders and files of today's formats: `python tests/golden/make.py v3`.

Those whose format has a new version are committed, once, and never made again for the same one:
retr opens them in every later version; tests/unit/storage/test_golden.py checks their contents.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image

from benchmarks.suite.report import FORMAT, VERSION
from benchmarks.suite.run import Row, SuiteReport, with_front
from encoders.toy import Toy
from encoders.training.recipe import Loss, Optimizer, Recipe, Sampler
from encoders.training.trainer import train
from retrieval.contracts import Json, Metric
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from retrieval.index.build import build_index
from retrieval.index.build_segments import build_segments
from retrieval.pairs.calibration import Calibration, FittedTo, Method
from retrieval.quality.evaluation import evaluate
from retrieval.quality.exchange import write_queries
from retrieval.quality.labelled import Labelled
from retrieval.quality.protocols import Protocol, Sides
from retrieval.registry import make_indexer
from retrieval.storage.cards import WEIGHTS, Card
from retrieval.storage.files import locked, made_folder, write_json
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, Skipped, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter, relocate_embeddings

HERE = Path(__file__).parent
DIM = 4
ROWS = 6


def vectors() -> np.ndarray:
    """Row i holds i, i/2, -i/4 and 1: exact in float16."""
    i = np.arange(ROWS, dtype=np.float32)
    return np.stack((i, i / 2, -i / 4, np.ones_like(i)), axis=1)


def main() -> None:
    facts = Facts(
        encoder=EncoderFacts("golden", "0" * 64, {"version": 1}),
        dim=DIM,
        dtype=Dtype.FLOAT16,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts("golden/train", "1" * 64, ROWS + 1),
        shard_images=4,
    )
    folder = made_folder(HERE / sys.argv[1] / "embeddings")
    with locked(folder):
        writer = ShardWriter(folder, facts)
        labels = ["even" if i % 2 == 0 else None for i in range(ROWS)]
        for rows in (range(0, 4), range(4, ROWS)):
            writer.write(
                ids=[f"train/{i:05d}" for i in rows],
                labels=[labels[i] for i in rows],
                paths=[f"images/{i}.png" for i in rows],
                vectors=vectors()[rows.start : rows.stop],
                skipped=[Skipped("images/bad.png", "truncated")] if rows.start else [],
            )
        writer.finish()
    sets = [open_embeddings(folder)]
    for backend in ("exact", "ivf", "hnsw", "milvus"):
        build_index(sets, backend, HERE / sys.argv[1] / backend)
    build_segments(sets, "exact", HERE / sys.argv[1] / "parts", 2)
    make_copies(HERE / sys.argv[1])
    make_graphs(HERE / sys.argv[1])
    make_photos(HERE / sys.argv[1])
    make_encoder(HERE / sys.argv[1] / "encoder")
    make_files(HERE / sys.argv[1])


def make_copies(folder: Path) -> None:
    """Index rows that share vectors: those of `vectors()`, and row 4 and 1 once more."""
    repeated = [*range(ROWS), 4, 1]
    facts = Facts(
        encoder=EncoderFacts("golden", "0" * 64, {"version": 1}),
        dim=DIM,
        dtype=Dtype.FLOAT32,
        metric=Metric.EUCLIDEAN,
        source=SourceFacts("golden/copies", "2" * 64, len(repeated)),
        shard_images=8,
    )
    with TemporaryDirectory() as name, locked(Path(name)):
        writer = ShardWriter(Path(name), facts)
        writer.write(
            ids=[f"{row}" for row in range(len(repeated))],
            labels=[None] * len(repeated),
            paths=[f"images/{row}.png" for row in range(len(repeated))],
            vectors=vectors()[repeated],
            skipped=[],
        )
        writer.finish()
        for backend in ("hnsw", "hnsw-pca", "vamana", "milvus"):
            build_index([open_embeddings(Path(name))], backend, folder / f"copies-{backend}")


def make_graphs(folder: Path) -> None:
    """Save graphs of codes of 8 and of 16 bits: waves of 64 numbers, whose rests are not 0."""
    for bits in (8, 16):
        made = made_folder(folder / f"graph-{bits}")
        indexer = make_indexer("hnsw-pca", {"metric": "euclidean", "axes": 16, "bits": bits})
        indexer.build(waves()).save(made)


def waves() -> np.ndarray:
    """Row i holds cos((i + 1) j / 10) for j from 0 to 63; 30 rows."""
    rows, columns = np.arange(1, 31)[:, None], np.arange(64)
    return np.cos(rows * columns / 10).astype(np.float32)


def make_photos(folder: Path) -> None:
    """Encode and index photographs in a folder that was moved, with EXIF data and a metadata.csv.

    Their colors are those of a gray step each, by which `toy` tells them apart.
    """
    with TemporaryDirectory() as name:
        photos = made_folder(Path(name) / "photos" / "trip")
        for number in range(ROWS):
            exif = Image.Exif()
            exif[ExifTags.Base.Model] = "Golden 1"
            exif[ExifTags.Base.DateTime] = f"2024:05:0{number + 1} 10:00:00"
            path = photos / f"{number}.jpg"
            Image.new("RGB", (12, 8), (40 * number,) * 3).save(path, exif=exif)
            os.utime(path, (1_700_000_000, 1_700_000_000))
        (photos / "metadata.csv").write_text("file_name,label,stars\n0.jpg,first,5\n")
        encode_source(open_source(str(photos.parent)), Toy(), folder / "photos", shard_images=4)
    relocate_embeddings(folder / "photos", "/golden/photos")
    build_index([open_embeddings(folder / "photos")], "exact", folder / "photos-exact")


def stripes(seed: int) -> tuple[str, np.ndarray]:
    """Stripes in noise (32, 32, 3) that lie or, for an odd seed, stand."""
    noise = np.random.default_rng(seed).integers(0, 100, (32, 32, 3), np.uint8)
    noise[::4] += 150
    return ("lying", noise) if seed % 2 == 0 else ("standing", noise.transpose(1, 0, 2))


def make_encoder(folder: Path) -> None:
    """Train a small network on images of stripes."""
    recipe = Recipe(
        "siamese",
        network={"widths": [4, 4, 4], "dim": 3, "class_sharpness": 16.0},
        losses=(Loss("normalised-softmax"),),
        epochs=20,
        sampler=Sampler(batch=8),
        optimizer=Optimizer("adamw", lr=0.02),
    )
    with TemporaryDirectory() as name:
        for seed in range(16):
            label, image = stripes(seed)
            path = Path(name) / "photos" / label / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        data = replace(recipe.data, source=f"{name}/photos")
        train(replace(recipe, data=data), Path(name) / "encoder")
        card = Card.read(Path(name) / "encoder")
        made_folder(folder)
        (folder / WEIGHTS).write_bytes((Path(name) / "encoder" / WEIGHTS).read_bytes())
        facts = replace(
            card.training, recipe={**card.training.recipe, "data": {"source": "golden"}}
        )
        replace(card, training=replace(facts, data={"source": "golden"})).write(folder)


def make_files(folder: Path) -> None:
    """Write what is a single file: calibrations, an evaluation's queries, and a draw."""
    distances = np.linspace(0, 2, 9)
    alike = np.array([1, 1, 1, 0, 1, 0, 0, 1, 0], bool)
    for method in Method:
        fitted_to = FittedTo(9, 6, ("even", "odd"), "golden/test")
        fitted = Calibration.fitted(distances, alike, method, Metric.COSINE, "0" * 64, fitted_to)
        fitted.write(folder / f"calibration-{method}.json")
    ids = [f"golden: {i}" for i in range(ROWS)]
    images = Labelled(vectors(), ids, ["even", "odd"] * (ROWS // 2))
    evaluation = evaluate(images, images, Metric.EUCLIDEAN, (1, 2))
    write_queries(folder / "queries.parquet", evaluation, {"protocol": "unseen"})
    queries, database = images.take(np.array([0, 1])), images.take(np.array([2, 3]))
    draw = Sides(queries, database, Protocol.HASHING_54K, seed=3, left_out=ids[4:])
    draw.write_draw(folder / "draw.json")
    write_json(folder / "bench.json", report())


def report() -> dict[str, Json]:
    """Return a report like those of `retr bench`: an index that is fast in one setting of two."""
    rows = [
        Row(
            backend="ivf",
            setting={"n_probe": n_probe},
            options={"n_lists": None, "n_probe": n_probe},
            details={"lists": 64},
            threads=1,
            recall_at={1: recall, 10: recall, 100: recall},
            map_at={100: 0.5},
            map_loss=0.01,
            qps=qps,
            qps_runs=[qps] * 5,
            qps_single=qps / 2,
            latency_ms={"p50": 1.0, "p95": 2.0, "p99": 3.0, "p99.9": 4.0},
            latency_runs_ms=[1.0] * 5,
            build_seconds=0.5,
            size_bytes=1000,
            memory_bytes=None,
        )
        for n_probe, recall, qps in ((1, 0.5, 900.0), (8, 0.9, 300.0))
    ]
    data: dict[str, Json] = {"dim": 4, "metric": "cosine", "encoder": None}
    counts: dict[str, Json] = {"queries": 20, "database": 100}
    names: dict[str, Json] = {"queries": "asked", "database": "searched"}
    document = SuiteReport({"cpu": "golden", "cores": 2}, data, {}, with_front(rows), pa.table({}))
    return {
        "format": FORMAT,
        "version": VERSION,
        **document.to_json(),
        "data": {**data, **names, "counts": counts},
    }


if __name__ == "__main__":
    main()

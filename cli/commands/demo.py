"""`retr demo`: encode, index, search and measure real images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import Data, Device
from cli.output import Output, plural
from cli.photo_demo import show_collection
from cli.tables import print_bench, print_evaluation
from retrieval.errors import UnknownName
from retrieval.units import duration, size

if TYPE_CHECKING:
    from retrieval.contracts import Encoder
    from retrieval.contracts import Json as JsonValue
    from retrieval.images import Source
    from retrieval.storage.sets.embeddings import Embeddings

QUERIES_SHOWN = 8
NEIGHBORS_SHOWN = 10
QUERIES_TIMED = 2000  # drawn at random; `retr bench` takes all of them
BACKENDS = ("exact", "ivf", "hnsw")
DEMOS = ("cifar10", "photos")
DEFAULT_ENCODER = "siamese-quick"


@command()
def demo(
    output: Output,
    kind: Annotated[
        str,
        typer.Argument(
            help="cifar10: measure indices. photos: the life of a folder of photographs."
        ),
    ] = DEMOS[0],
    out: Annotated[
        Path, typer.Option(help="Folder for embeddings, indices, tables and pictures.")
    ] = Path("retr-demo"),
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder.  [default: siamese-quick; for photos, that of folders]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Use only the first N images of each split."),
    ] = None,
    device: Device = "auto",
    data: Data = None,
) -> None:
    """Encode, index, search and measure CIFAR-10, in minutes; or search photographs that change.

    CIFAR-10 is downloaded if it is not found. If that fails, the digits of scikit-learn are used.
    The photographs are pieces of scikit-learn's sample images.

    Example: retr demo photos
    """
    if kind not in DEMOS:
        raise UnknownName("demo", kind, DEMOS)
    if kind == "photos":
        output.document(show_collection(output, out, encoder, device))
    else:
        _measure_cifar10(output, out, encoder or DEFAULT_ENCODER, limit, device, data)


def _measure_cifar10(
    output: Output, out: Path, encoder: str, limit: int | None, device: str, data: Path | None
) -> None:
    """Encode, index, search and measure the data set; print and write the numbers."""
    import time

    from retrieval.quality.metrics import DEFINITIONS
    from retrieval.registry import open_encoder
    from retrieval.storage.files import made_folder, write_json

    started = time.perf_counter()
    sources = _sources(output, data, limit)
    opened = open_encoder(encoder, device)
    made_folder(out)

    output.say(f"1. Encode {sources['train'].name.split('/')[0]} with {opened.name}")
    database = _encoded(output, sources["train"], opened, out)
    queries = _encoded(output, sources["test"], opened, out)
    output.say("\n2. Build the indices")
    _build(output, database, out / "indices")
    output.say("\n3. Search some test images")
    sheet = out / "neighbors.png"
    _search(output, queries, out / "indices" / "hnsw", sheet)
    document = _measure(output, queries, database)
    output.say("\nWhat the numbers mean")
    for definition in DEFINITIONS.values():
        output.say(f"- {definition}")

    document |= {
        "data": {"queries": sources["test"].name, "database": sources["train"].name},
        "encoder": {"name": opened.name, "fingerprint": opened.fingerprint},
        "sheet": str(sheet),
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "demo.json", document)
    output.say(
        f"\nDone in {duration(time.perf_counter() - started)}.\n"
        f"pictures: {sheet}\nnumbers:  {out / 'demo.json'}\n"
        f"try:      retr search IMAGE --index {out / 'indices' / 'hnsw'}"
    )
    output.document(document)


def _build(output: Output, database: "Embeddings", folder: Path) -> None:
    import time

    from retrieval.index.build import build_index

    for backend in BACKENDS:
        before = time.perf_counter()
        facts = build_index([database], backend, folder / backend)
        seconds = time.perf_counter() - before
        n_bytes = size(facts.size_in(folder / backend))
        output.say(f"   {backend:<6} {duration(seconds):>8}  {n_bytes}")


def _search(output: Output, queries: "Embeddings", index: Path, sheet: Path) -> None:
    """Search some images, spread over all of them, and draw them with their neighbors."""
    import numpy as np

    from cli.pictures import draw_sheet, pictured
    from retrieval.index.searching import Searcher
    from retrieval.storage.names import restored

    rows, vectors = queries.read()
    shown = np.random.default_rng(0).choice(len(rows), min(QUERIES_SHOWN, len(rows)), replace=False)
    searcher = Searcher.open(index)
    answers = searcher.search(vectors[shown], min(NEIGHBORS_SHOWN, len(searcher)))
    asked = rows.take(shown).to_pydict()
    output.table(
        ("query", "label", "neighbors' labels, nearest first"),
        [
            (name, label, " ".join(hit.label or "–" for hit in hits))
            for name, label, hits in zip(asked["id"], asked["label"], answers, strict=True)
        ],
        left=3,
    )
    paths = [*map(restored, asked["path"])]
    pictures = pictured(asked["id"], paths, asked["label"], answers)
    draw_sheet(sheet, pictures, "queries at the left, their nearest neighbors beside them")


def _measure(
    output: Output, queries: "Embeddings", database: "Embeddings"
) -> "dict[str, JsonValue]":
    """Measure exact search, and then the indices; return the numbers."""
    from benchmarks.suite.run import run
    from retrieval.quality.evaluation import KS, evaluate
    from retrieval.quality.labelled import Labelled

    output.say("\n4. Measure retrieval by exact search; images with the query's label are relevant")
    labelled = Labelled.of(queries), Labelled.of(database)
    metric = database.facts.metric
    official = evaluate(*labelled, metric, KS)
    print_evaluation(output, official)
    unseen = evaluate(labelled[0], labelled[0], metric, (10,))
    output.say(
        f"Test images as queries and database, each left out of its own ranking: "
        f"mAP {unseen.map:.4f}, P@10 {unseen.precision_at[10]:.4f}"
    )
    output.say("\n5. Measure the indices")
    with output.steps() as step:
        few, _ = labelled[0].split_off(QUERIES_TIMED, seed=0)
        report = run(few, labelled[1], metric, BACKENDS, progress=step)
    print_bench(output, report)
    return {
        "official": official.to_json(),
        "unseen": unseen.to_json(),
        "bench": report.to_json(),
    }


def _sources(output: Output, data: Path | None, limit: int | None) -> "dict[str, Source]":
    """Return the splits of CIFAR-10, or of the digits if it cannot be downloaded."""
    from retrieval.errors import BadSource
    from retrieval.images import open_source

    splits = ("train", "test")
    try:
        return {split: open_source("cifar10", split, data, limit) for split in splits}
    except BadSource as error:
        output.warn(f"{error}; using scikit-learn's digits instead")
        return {split: open_source("digits", split, data, limit) for split in splits}


def _encoded(output: Output, source: "Source", encoder: "Encoder", out: Path) -> "Embeddings":
    import time

    from retrieval.embedding.encode import bring_up_to_date
    from retrieval.embedding.runtimes.choice import RunBy
    from retrieval.storage.sets.embeddings import open_embeddings

    folder = out / "embeddings" / source.name.replace("/", "-")
    before = time.perf_counter()
    with output.progress(f"encode {source.name}", "image") as show:
        run_by = RunBy(note=output.hint)
        outcome = bring_up_to_date(source, encoder, folder, progress=show, run_by=run_by)
        manifest = outcome.manifest
    seconds = time.perf_counter() - before
    output.say(
        f"   {source.name}: {plural(manifest.rows, 'image')} in {duration(seconds)}, "
        f"{manifest.rows / seconds:,.0f} images/s"
    )
    return open_embeddings(folder)

"""`retr encode`: images to embeddings."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Address,
    Data,
    Device,
    EncoderName,
    ImageColumn,
    LabelColumn,
    is_ray,
)
from cli.output import Output, plural
from retrieval.units import duration

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.images.folders.listing import Listed
    from retrieval.workspace import Workspace


@command(threads=True, max_megapixels=True)
def encode(
    output: Output,
    workspace: "Workspace",
    source: Annotated[
        str,
        typer.Argument(
            help="cifar10, mnist, fashion-mnist, digits, a folder of images (its sub-folders are "
            "labels), a glob, Parquet or Arrow with a column of images, a save_to_disk folder, tar "
            "archives of WebDataset; or a URL of images or Parquet in a store."
        ),
    ] = "cifar10",
    encoder: EncoderName = "siamese",
    split: Annotated[
        str | None,
        typer.Option(
            help="train or test, for sources that have them; also folders train/, val/, test/ "
            "that hold a folder for each class.  [default: train]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first N images only.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The embeddings folder.  [default: one in the workspace]",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 at half the size.")] = "float32",
    device: Device = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="local, or ray: by the workers of a Ray cluster, on GPUs where it has any "
            "(pip install 'retr[ray]'). --threads bounds the CPUs of each worker."
        ),
    ] = "local",
    address: Address = None,
    data: Data = None,
) -> None:
    """Turn images into embeddings, a folder of Parquet shards.

    A run that was stopped goes on where it was when the same command is given again. Images
    that cannot be read, and folders that cannot be listed, are listed in skipped.parquet.

    A folder is listed once, at the start. Images that arrive during the run are not in the set.

    Example: retr encode photos/ --out photos-embeddings

    Example: retr encode photos.parquet --image-column thumbnail --label-column genre

    Example: retr encode s3://bucket/photos --out s3://bucket/photos-embeddings
    """
    import time

    from cli.onnx_cache import keep_for_searches
    from cli.quiet import quiet_libraries
    from retrieval.embedding.encode import encode_source
    from retrieval.errors import UnknownName
    from retrieval.images import Columns, open_source
    from retrieval.images.folders.listing import listed, said_of
    from retrieval.registry import open_encoder
    from retrieval.storage.places import place_of
    from retrieval.storage.shards import Dtype
    from retrieval.workspace import Role

    if dtype not in list(Dtype):
        raise UnknownName("dtype", dtype, Dtype)
    on_ray = is_ray(engine, address)
    columns = Columns(image_column, label_column)
    images = open_source(source, split, data, limit, output.warn, columns)
    found = listed(images)
    # Of a cluster, the workers run the network.
    opened = open_encoder(encoder, "cpu" if on_ray and device in ("auto", "cuda") else device)
    folder = place_of(out) if out else workspace.embeddings_folder(images, opened, Dtype(dtype))
    started = time.perf_counter()

    with (
        quiet_libraries(output.debug) if on_ray else nullcontext(),
        output.progress(f"encode {images.name}", "image") as show,
    ):
        before = len(images)  # what earlier runs had done: all, unless progress says less

        def progress(done: int, total: int) -> None:
            nonlocal before
            before = min(before, done)
            show(done, total)

        if on_ray:
            from retrieval.embedding.on_ray import Names, encode_on_cluster

            names = Names(source, encoder, split, data, limit, device, columns)
            manifest = encode_on_cluster(
                names, images, opened, folder, Dtype(dtype), progress=progress, address=address
            )
        else:
            manifest = encode_source(images, opened, folder, Dtype(dtype), progress=progress)
        fresh = len(images) - before
    seconds = time.perf_counter() - started
    if out is None or workspace.folder.is_dir():
        workspace.remember(Role.EMBEDDINGS, folder)
        workspace.remember(Role.QUERIES if split == "test" else Role.DATABASE, folder)

    if manifest.skipped:
        output.warn(
            f"{plural(manifest.skipped, 'image')} could not be read; "
            f"{folder / 'skipped.parquet'} says which and why"
        )
    if found is not None and fresh:
        _warn_of_changes(output, found)
    rate = fresh / seconds if fresh else 0.0
    output.say(
        f"{plural(manifest.rows, 'embedding')} of {opened.dim} dimensions by {opened.name} "
        f"in {folder}"
    )
    passed_over: dict[str, JsonValue] = {} if found is None else {**found.left_out.passed_over}
    if found is not None and passed_over:
        output.say(said_of(found.left_out.passed_over))
    if fresh:
        output.say(f"{plural(fresh, 'image')} in {duration(seconds)}, {rate:,.0f} images/s")
    else:
        output.say("they were there already: nothing to do")
    output.document(
        {
            "out": str(folder),
            "rows": manifest.rows,
            "dim": opened.dim,
            "shards": len(manifest.shards),
            "skipped": manifest.skipped,
            "skipped_folders": manifest.skipped_folders,
            "passed_over": passed_over,
            "encoder": {"name": opened.name, "fingerprint": opened.fingerprint},
            "seconds": seconds,
            "images_per_second": rate,
        }
    )
    keep_for_searches(output, opened)


def _warn_of_changes(output: Output, source: "Listed") -> None:
    """Say which files arrived or changed since the source was listed."""
    from retrieval.errors import BadInput

    try:
        changes = source.changes()
    except BadInput as error:
        output.warn(f"not known whether files arrived during the run: {error}")
        return
    remedy = "to have all as they are now, encode again with another --out"
    if changes.arrived:
        files = plural(changes.arrived, "file")
        verb = "is" if changes.arrived == 1 else "are"
        output.warn(f"{files} arrived during the run and {verb} not in the set; {remedy}")
    if changes.changed:
        files = plural(changes.changed, "file")
        verb = "is" if changes.changed == 1 else "are"
        output.warn(
            f"{files} changed during the run and {verb} in the set as read, before or after; "
            f"{remedy}"
        )

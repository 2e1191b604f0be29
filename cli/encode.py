"""`retr encode`: images to embeddings."""

from contextlib import nullcontext
from typing import Annotated

import typer

from cli.options import (
    Address,
    Data,
    Debug,
    Device,
    EncoderName,
    Json,
    MaxMegapixels,
    Quiet,
    Threads,
    WorkspaceFolder,
    is_ray,
)
from cli.output import Output, duration, plural


def encode(
    source: Annotated[
        str,
        typer.Argument(
            help="cifar10, mnist, fashion-mnist, digits, a folder of images (its sub-folders are "
            "labels), a glob, Parquet with images in the Hugging Face schema; or a URL of such in "
            "a store."
        ),
    ] = "cifar10",
    encoder: EncoderName = "siamese",
    split: Annotated[
        str | None,
        typer.Option(
            help="train or test, for sources that have them.  [default: train]", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Take the first N images only.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The embeddings folder.  [default: one in the workspace]",
            show_default=False,
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
    threads: Threads = None,
    max_megapixels: MaxMegapixels = None,
    data: Data = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn images into embeddings, a folder of Parquet shards.

    A run that was stopped goes on where it was when the same command is given again. Images
    that cannot be read are listed in skipped.parquet.

    Example: retr encode photos/ --out photos-embeddings

    Example: retr encode s3://bucket/photos --out s3://bucket/photos-embeddings
    """
    import time

    from cli.exporting import keep_for_searches
    from cli.hushing import hushed
    from retrieval.encoding import encode_source
    from retrieval.errors import UnknownName
    from retrieval.images import open_source
    from retrieval.registry import open_encoder
    from retrieval.storage.places import place_of
    from retrieval.storage.shards import Dtype
    from retrieval.workspace import Role, Workspace

    output = Output(json, quiet)
    if dtype not in list(Dtype):
        raise UnknownName("dtype", dtype, Dtype)
    on_ray = is_ray(engine, address)
    images = open_source(source, split, data, limit)
    # Of a cluster, the workers run the network.
    opened = open_encoder(encoder, "cpu" if on_ray and device in ("auto", "cuda") else device)
    place = Workspace.at(workspace)
    folder = place_of(out) if out else place.embeddings_folder(images, opened, Dtype(dtype))
    started = time.perf_counter()

    with (
        hushed(debug) if on_ray else nullcontext(),
        output.progress(f"encode {images.name}", "image") as show,
    ):
        before = len(images)  # what earlier runs had done: all, unless progress says less

        def progress(done: int, total: int) -> None:
            nonlocal before
            before = min(before, done)
            show(done, total)

        if on_ray:
            from retrieval.distributed.encoding import Names, encode_on_cluster

            names = Names(source, encoder, split, data, limit, device)
            manifest = encode_on_cluster(
                names, images, opened, folder, Dtype(dtype), progress=progress, address=address
            )
        else:
            manifest = encode_source(images, opened, folder, Dtype(dtype), progress=progress)
        fresh = len(images) - before
    seconds = time.perf_counter() - started
    if out is None or place.folder.is_dir():
        place.remember(Role.EMBEDDINGS, folder)
        place.remember(Role.QUERIES if split == "test" else Role.DATABASE, folder)

    if manifest.skipped:
        output.warn(
            f"{plural(manifest.skipped, 'image')} could not be read; "
            f"{folder / 'skipped.parquet'} says which and why"
        )
    rate = fresh / seconds if fresh else 0.0
    output.say(
        f"{plural(manifest.rows, 'embedding')} of {opened.dim} dimensions by {opened.name} "
        f"in {folder}"
    )
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
            "encoder": {"name": opened.name, "fingerprint": opened.fingerprint},
            "seconds": seconds,
            "images_per_second": rate,
        }
    )
    keep_for_searches(output, opened)

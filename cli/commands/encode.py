"""`retr encode`: images to embeddings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
    parsed_choice,
)
from cli.output import Output, plural
from retrieval.units import duration

if TYPE_CHECKING:
    from retrieval.contracts import Encoder
    from retrieval.contracts import Json as JsonValue
    from retrieval.embedding.ray_worker import Names
    from retrieval.images import Source
    from retrieval.images.folders.listing import Listed
    from retrieval.storage.manifest import Dtype, Manifest
    from retrieval.storage.places import Place
    from retrieval.workspace import Workspace


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Images: cifar10, mnist, fashion-mnist, digits, a folder (its subfolders are "
        "labels), a glob, Parquet or Arrow with a column of images, a save_to_disk folder, "
        "tar archives of WebDataset, or a URL of images or Parquet."
    ),
]

SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Split of the source: train or test. A folder has splits if it holds train/, "
        "val/ or test/, each with a folder for each class.  [default: train]",
    ),
]

OutOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Embeddings folder to write.  [default: a folder in the workspace]",
    ),
]

DtypeOption = Annotated[
    str,
    typer.Option(help="Number type of the embeddings: float32, or float16 (half the size)."),
]

EngineOption = Annotated[
    str,
    typer.Option(
        help="Where to encode: local, or ray for a Ray cluster, on its GPUs if it has any "
        "(pip install 'retr[ray]'). With ray, --threads limits the CPUs of each worker."
    ),
]


@command(threads=True, max_megapixels=True)
def encode(
    output: Output,
    workspace: "Workspace",
    source: SourceArgument = "cifar10",
    encoder: EncoderName = "siamese",
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(help="Encode only the first N images.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    out: OutOption = None,
    dtype: DtypeOption = "float32",
    device: Device = "auto",
    engine: EngineOption = "local",
    address: Address = None,
    data: Data = None,
) -> None:
    """Encode images into embeddings: a folder of Parquet shards.

    Run the same command again to continue a run that was stopped. Images that cannot be read, and
    folders that cannot be listed, are named in skipped.parquet. A folder is listed once, at the
    start. Images that arrive later are not encoded.

    Example: retr encode photos/ --out photos-embeddings

    Example: retr encode photos.parquet --image-column thumbnail --label-column genre

    Example: retr encode s3://bucket/photos --out s3://bucket/photos-embeddings
    """
    import time

    from cli.onnx_cache import keep_for_searches
    from retrieval.embedding.encode import encode_source
    from retrieval.embedding.ray_worker import Names
    from retrieval.images import Columns, open_source
    from retrieval.images.folders.listing import listed
    from retrieval.registry import open_encoder
    from retrieval.storage.manifest import Dtype
    from retrieval.storage.places import place_of

    number_type = parsed_choice("dtype", dtype, Dtype)
    on_ray = is_ray(engine, address)
    columns = Columns(image_column, label_column)
    images = open_source(source, split, data, limit, output.warn, columns)
    # On a cluster, the workers run the network.
    opened = open_encoder(encoder, "cpu" if on_ray and device in ("auto", "cuda") else device)
    folder = place_of(out) if out else workspace.embeddings_folder(images, opened, number_type)
    encode_images: Callable[..., Manifest] = encode_source
    if on_ray:
        names = Names(source, encoder, split, data, limit, device, columns)
        encode_images = partial(_encode_on_cluster, output, names, address)
    started = time.perf_counter()
    with output.progress(f"encode {images.name}", "image") as show:
        new = _NewImages(len(images), show)
        manifest = encode_images(images, opened, folder, number_type, progress=new.progress)
    seconds = time.perf_counter() - started
    _remember(workspace, folder, split, is_given=out is not None)
    run = EncodeRun(folder, manifest, opened, listed(images), new.count, seconds)
    _print(output, run)
    output.document(run.to_json())
    keep_for_searches(output, opened)


def _remember(workspace: "Workspace", folder: "Place", split: str | None, is_given: bool) -> None:
    """Let later commands take the folder: a test split as queries, others as the database.

    A folder that the user gave is remembered only in a workspace that exists.
    """
    from retrieval.workspace import Role

    if is_given and not workspace.folder.is_dir():
        return
    workspace.remember(Role.EMBEDDINGS, folder)
    workspace.remember(Role.QUERIES if split == "test" else Role.DATABASE, folder)


@dataclass(slots=True)
class _NewImages:
    """Count the images that earlier runs did not encode, from the progress of this one.

    total: of all images. before: of those that earlier runs encoded.
    """

    total: int
    show: Callable[[int, int], None]
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.total  # until the progress shows otherwise

    def progress(self, done: int, total: int) -> None:
        """Show the progress. The first call comes before the first new image."""
        self.before = min(self.before, done)
        self.show(done, total)

    @property
    def count(self) -> int:
        """Return the number of images that are new."""
        return self.total - self.before


@dataclass(frozen=True, slots=True)
class EncodeRun:
    """Embeddings after a run, and facts about the run.

    listing: None for a source that is not a folder. new: images that the run encoded.
    """

    folder: "Place"
    manifest: "Manifest"
    encoder: "Encoder"
    listing: "Listed | None"
    new: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Return the speed; 0 without new images."""
        return self.new / self.seconds if self.new else 0.0

    def to_json(self) -> "dict[str, JsonValue]":
        """Return the document of `retr encode --json`."""
        manifest, listing = self.manifest, self.listing
        return {
            "out": str(self.folder),
            "rows": manifest.rows,
            "dim": self.encoder.dim,
            "shards": len(manifest.shards),
            "skipped": manifest.skipped,
            "skipped_folders": manifest.skipped_folders,
            "passed_over": {} if listing is None else {**listing.left_out.passed_over},
            "encoder": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def _encode_on_cluster(
    output: Output,
    names: "Names",
    address: str | None,
    source: "Source",
    encoder: "Encoder",
    folder: "Place",
    dtype: "Dtype",
    progress: Callable[[int, int], None],
) -> "Manifest":
    """Encode as `encode_source` does, by the workers of a Ray cluster."""
    from cli.quiet import quiet_libraries
    from retrieval.embedding.on_ray import encode_on_cluster

    with quiet_libraries(output.debug):
        return encode_on_cluster(
            names, source, encoder, folder, dtype, progress=progress, address=address
        )


def _print(output: Output, run: EncodeRun) -> None:
    from retrieval.images.folders.listing import said_of

    manifest, listing = run.manifest, run.listing
    if manifest.skipped:
        output.warn(
            f"{plural(manifest.skipped, 'image')} could not be read; "
            f"{run.folder / 'skipped.parquet'} lists them with the reasons"
        )
    if listing is not None and run.new:
        _warn_of_changes(output, listing)
    output.say(
        f"{plural(manifest.rows, 'embedding')} of {run.encoder.dim} dimensions by "
        f"{run.encoder.name} in {run.folder}"
    )
    if listing is not None and listing.left_out.passed_over:
        output.say(said_of(listing.left_out.passed_over))
    if run.new:
        speed = f"{run.images_per_second:,.0f} images/s"
        output.say(f"{plural(run.new, 'image')} in {duration(run.seconds)}, {speed}")
    else:
        output.say("nothing to do: all images are encoded already")


def _warn_of_changes(output: Output, source: "Listed") -> None:
    """Warn of files that arrived or changed since the source was listed."""
    from retrieval.errors import BadInput

    try:
        changes = source.changes()
    except BadInput as error:
        output.warn(f"cannot check for files that arrived during the run: {error}")
        return
    remedy = "to encode the current files, run again with another --out"
    if changes.arrived:
        files = plural(changes.arrived, "file")
        verb = "is" if changes.arrived == 1 else "are"
        output.warn(f"{files} arrived during the run and {verb} not encoded; {remedy}")
    if changes.changed:
        files = plural(changes.changed, "file")
        verb = "is" if changes.changed == 1 else "are"
        output.warn(
            f"{files} changed during the run and {verb} encoded as before or after the change; "
            f"{remedy}"
        )

"""`retr encode`: images to embeddings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Address,
    Data,
    Device,
    ImageColumn,
    LabelColumn,
    OtherColumns,
    is_ray,
    parsed_choice,
)
from cli.output import Output, plural
from retrieval.units import duration

if TYPE_CHECKING:
    from retrieval.contracts import Encoder
    from retrieval.contracts import Json as JsonValue
    from retrieval.embedding.encode import Outcome
    from retrieval.embedding.ray_worker import Names
    from retrieval.embedding.runtimes.contract import Precision
    from retrieval.images import Source
    from retrieval.images.folders.excludes import Excludes
    from retrieval.images.folders.listing import Listed
    from retrieval.storage.places import Place
    from retrieval.storage.sets.manifest import Dtype
    from retrieval.workspace import Workspace


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Images: cifar10, mnist, fashion-mnist, digits, a folder (its subfolders are "
        "labels), a glob, Parquet or Arrow with a column of images, a save_to_disk folder, "
        "tar archives of WebDataset, or a URL of images or Parquet."
    ),
]

ChosenEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Encoder: clip:MODEL (any model of open_clip, for words too), pretrained:MODEL or "
        "pretrained:MODEL@LAYER+LAYER (any timm model), siamese, siamese-quick, autoencoder, "
        "autoencoder-10, toy, the name of a plug-in, or a folder made by 'retr train'.  [default: "
        "that of the folder's embeddings, or an encoder for photographs, or siamese for data sets]",
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

RuntimeOption = Annotated[
    str,
    typer.Option(
        help="Library that runs the encoder on a CPU: torch, onnx, openvino; or auto for the "
        "fastest on this machine, which is measured once for 2,000 images or more."
    ),
]

PrecisionOption = Annotated[
    str,
    typer.Option(
        help="exact: as in float32. balanced: faster, at no loss of retrieval that matters "
        "(mAP and P@10 within .001). fast: more rounding (within .005)."
    ),
]

EngineOption = Annotated[
    str,
    typer.Option(
        help="Where to encode: local, or ray for a Ray cluster, on its GPUs if it has any "
        "(pip install 'retr[ray]'). With ray, --threads limits the CPUs of each worker."
    ),
]


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """The options of a source that is a folder of images."""

    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave out files and folders that match, in gitignore's syntax; repeatable. A "
            "file .retrignore in a folder does the same for that folder.",
        ),
    ] = None
    default_excludes: Annotated[
        bool,
        typer.Option(
            "--default-excludes/--no-default-excludes",
            help="Leave out what systems leave behind: names that begin with a dot, @eaDir, "
            "#recycle, $RECYCLE.BIN, node_modules, __MACOSX and the like.",
        ),
    ] = True
    check_content: Annotated[
        bool,
        typer.Option(
            "--check-content",
            help="Compare the content of all files with their embeddings, not only of files whose "
            "size or time has changed.",
        ),
    ] = False

    def excludes(self) -> "Excludes":
        """Return what to leave out."""
        from retrieval.images.folders.excludes import Excludes

        return Excludes(tuple(self.exclude or ()), self.default_excludes)


@command(threads=True, max_megapixels=True)
def encode(
    output: Output,
    workspace: "Workspace",
    source: SourceArgument = "cifar10",
    encoder: ChosenEncoder = None,
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(help="Encode only the first N images.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    column: OtherColumns = None,
    out: OutOption = None,
    dtype: DtypeOption = "float32",
    device: Device = "auto",
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "balanced",
    engine: EngineOption = "local",
    address: Address = None,
    *,
    in_folder: FolderOptions,
    data: Data = None,
) -> None:
    """Encode images into embeddings: a folder of Parquet shards.

    Run the same command again to continue a run that was stopped, or after files have changed: only
    new and changed files are encoded. skipped.parquet lists images that cannot be read.

    Example: retr encode photos/ --exclude 'raw/**' --out photos-embeddings
    """
    import time

    from cli.onnx_cache import keep_for_searches
    from retrieval.embedding.default_encoder import encoder_for
    from retrieval.embedding.encode import bring_up_to_date
    from retrieval.embedding.ray_worker import Names
    from retrieval.embedding.runtimes.choice import RunBy
    from retrieval.embedding.runtimes.contract import Precision
    from retrieval.images import Columns, open_source
    from retrieval.images.folders.listing import listed
    from retrieval.storage.places import place_of
    from retrieval.storage.sets.manifest import Dtype

    number_type = parsed_choice("dtype", dtype, Dtype)
    run_by = RunBy(parsed_choice("precision", precision, Precision), runtime, output.hint)
    on_ray = is_ray(engine, address)
    columns = Columns(image_column, label_column, tuple(column or ()))
    images = open_source(source, split, data, limit, output.warn, columns, in_folder.excludes())
    # On a cluster, the workers run the network.
    own_device = "cpu" if on_ray and device in ("auto", "cuda") else device
    there = place_of(out) if out else workspace.embeddings_of(images, encoder)
    opened = encoder_for(images, encoder, there, own_device, output.hint)
    folder = place_of(out) if out else workspace.embeddings_folder(images, opened, number_type)
    names = Names(
        source, opened.name, split, data, limit, device, columns, runtime, run_by.precision
    )
    on_cluster = partial(_encode_on_cluster, output, names, address)
    here = partial(bring_up_to_date, run_by=run_by)
    encode_images = partial(on_cluster if on_ray else here, images, opened, folder, number_type)
    started = time.perf_counter()
    with output.progress(f"encode {images.name}", "image") as show:
        outcome = encode_images(progress=show, check_content=in_folder.check_content)
    seconds = time.perf_counter() - started
    run = EncodeRun(folder, outcome, opened, listed(images), seconds, run_by.precision)
    _remember(workspace, folder, split, is_given=out is not None)
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


@dataclass(frozen=True, slots=True)
class EncodeRun:
    """Embeddings after a run, and what the run did. listing: None unless the images are files."""

    folder: "Place"
    outcome: "Outcome"
    encoder: "Encoder"
    listing: "Listed | None"
    seconds: float
    precision: "Precision"

    @property
    def images_per_second(self) -> float:
        """Return the number of images that were encoded a second."""
        return self.outcome.encoded / self.seconds

    def to_json(self) -> "dict[str, JsonValue]":
        """Return the document of `retr encode --json`."""
        manifest, listing = self.outcome.manifest, self.listing
        return {
            "out": str(self.folder),
            "rows": manifest.rows,
            "dim": self.encoder.dim,
            "shards": len(manifest.shards),
            "skipped": manifest.skipped,
            "skipped_folders": manifest.skipped_folders,
            "passed_over": {} if listing is None else {**listing.left_out.passed_over},
            "encoded": self.outcome.encoded,
            "kept": self.outcome.kept,
            "removed": self.outcome.removed,
            "renamed": self.outcome.renamed,
            "encoder": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "made_by": [asdict(each) for each in manifest.made_by],
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
    check_content: bool,
) -> "Outcome":
    """Encode as `bring_up_to_date` does, by the workers of a Ray cluster."""
    from cli.quiet import quiet_libraries
    from retrieval.embedding.on_ray import encode_on_cluster

    with quiet_libraries(output.debug):
        return encode_on_cluster(
            names,
            source,
            encoder,
            folder,
            dtype,
            progress=progress,
            address=address,
            check_content=check_content,
        )


def _print(output: Output, run: EncodeRun) -> None:
    from retrieval.images.folders.listing import said_of

    outcome, listing = run.outcome, run.listing
    manifest = outcome.manifest
    for sentence in outcome.notes:
        output.warn(sentence)
    if manifest.skipped:
        output.warn(
            f"{plural(manifest.skipped, 'image')} could not be read; "
            f"{run.folder / 'skipped.parquet'} lists them with the reasons"
        )
        _say_kinds(output, run.folder)
    if listing is not None and outcome.encoded:
        _warn_of_changes(output, listing)
    output.say(
        f"{plural(manifest.rows, 'embedding')} of {run.encoder.dim} dimensions by "
        f"{run.encoder.name} in {run.folder}"
    )
    if listing is not None and listing.left_out.passed_over:
        output.say(said_of(listing.left_out.passed_over))
    if outcome.encoded:
        speed = f"{run.images_per_second:,.0f} images/s"
        output.say(f"{plural(outcome.encoded, 'image')} in {duration(run.seconds)}, {speed}")
    counts = {"kept": outcome.kept, "removed": outcome.removed, "renamed": outcome.renamed}
    if outcome.removed or outcome.renamed or (outcome.encoded and outcome.kept):
        output.say(", ".join(f"{what} {number:,}" for what, number in counts.items() if number))
    elif not outcome.encoded:
        output.say("nothing to do: all images are encoded already")
        _warn_of_precision(output, run)


def _warn_of_precision(output: Output, run: EncodeRun) -> None:
    """Warn if the embeddings that are there are less exact than what was asked for."""
    from retrieval.embedding.runtimes.contract import Precision

    strictness = [*Precision]
    found = {made_by.precision for made_by in run.outcome.manifest.made_by}
    looser = [each for each in strictness[strictness.index(run.precision) + 1 :] if each in found]
    if looser:
        output.warn(
            f"they were encoded with precision {' and '.join(looser)}; name another folder with "
            f"--out to encode with {run.precision}"
        )


def _say_kinds(output: Output, folder: "Place") -> None:
    """Say how many images of formats that need an extra could not be read."""
    from retrieval.images.optional.formats import installed_suffixes
    from retrieval.storage.sets.skipped import skipped_kinds

    kinds = {
        suffix: number
        for suffix, number in sorted(skipped_kinds(folder).items())
        if suffix in installed_suffixes()
    }
    if kinds:
        said = ", ".join(f"{suffix} {number:,}" for suffix, number in kinds.items())
        output.say(f"not read, though their format is supported: {said}")


def _warn_of_changes(output: Output, source: "Listed") -> None:
    """Warn of files that arrived or changed since the source was listed."""
    from retrieval.errors import BadInput

    try:
        changes = source.changes()
    except BadInput as error:
        output.warn(f"cannot check for files that arrived during the run: {error}")
        return
    remedy = "run the same command again to encode the current files"
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

"""Options that several commands share, and parsers of their values."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from retrieval.contracts import Metric
    from retrieval.index.on_ray import Cluster

Choice = TypeVar("Choice", bound=StrEnum)


def limited(threads: int | None) -> int | None:
    """Limit the threads of this process, before a library starts any.

    Raises BadInput for less than one thread, and for more threads than cores.
    """
    from retrieval.errors import BadInput
    from retrieval.runtime.threads import available_cores, limit_threads

    if threads is not None:
        cores = available_cores()
        if not 1 <= threads <= cores:
            raise BadInput(f"--threads {threads} on {cores} cores; give 1 to {cores}")
        limit_threads(threads)
    return threads


def limited_megapixels(count: int | None) -> int | None:
    """Set the maximum size of decoded images, in megapixels.

    Raises BadInput below 1, and if the variable RETR_MAX_MEGAPIXELS is not a number.
    """
    from retrieval.errors import BadInput
    from retrieval.images.pixels.megapixels import limit_megapixels, max_megapixels

    if count is None:
        max_megapixels()
    elif count < 1:
        raise BadInput(f"--max-megapixels {count} is below 1; give 1 or more")
    else:
        limit_megapixels(count)
    return count


def moved_root(root: str | None) -> str | None:
    """Let the process read images below the folder that --root names."""
    if root is not None:
        from retrieval.storage.roots import move_root

        move_root(root)
    return root


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WorkspaceFolder = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        help="Folder for results without a folder of their own.  [default: RETR_WORKSPACE, else "
        ".retr]",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of data sets, each in a folder of its own name.  [default: RETR_DATA_DIR, "
        "else the user's cache]",
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="Encoder: clip:MODEL, siamese, siamese-quick, autoencoder, autoencoder-10, toy, "
        "pretrained:MODEL or pretrained:MODEL@LAYER+LAYER (any timm model), the name of a "
        "plug-in, or a folder made by 'retr train'.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to use; auto for the one that runs on this machine.  [default: "
        "RAY_ADDRESS, else start Ray for this run]",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Device of the encoder: auto, cpu or cuda.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        callback=limited,
        help="Maximum number of threads.  [default: the number of cores]",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        callback=moved_root,
        metavar="DIR",
        help="Folder where the images are now, if their folder was moved. If images of several "
        "folders are involved, OLD=NEW.",
    ),
]
MaxMegapixels = Annotated[
    int | None,
    typer.Option(
        "--max-megapixels",
        callback=limited_megapixels,
        help="Maximum size of an image, in megapixels; for a JPEG, of the reduced size at which "
        "it is decoded.  [default: RETR_MAX_MEGAPIXELS, else 100]",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="Option of the backend, such as m=32 or ef=200. Repeatable.",
    ),
]
SearchOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="Search option of the backend, such as ef=200. Repeatable.",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Distance: cosine, euclidean, inner_product or manhattan.  [default: the encoder's]",
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        metavar="NAME",
        help="Column of images in Parquet or Arrow; member name in tar archives.  [default: "
        "img, image, jpg, png, pixel_values or the like]",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        metavar="NAME",
        help="Column of labels in Parquet or Arrow; member name or JSON key in tar archives; '' "
        "for no labels.  [default: label, labels, fine_label, coarse_label, class or category; "
        "cls in tar archives]",
    ),
]
OtherColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="Further column of Parquet or Arrow to keep for 'retr search --where'; repeatable. Of "
        "photographs, time, size, camera and place are kept, and the columns of metadata.csv or "
        "metadata.jsonl beside them.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="EXPRESSION",
        help="Search only rows that match, such as 'label = cat', or \"taken >= 2024-05-01 and "
        "camera like 'Pixel%'\". Operators: = != < <= > >= in like ilike between is-null and or "
        "not. 'retr info' lists the columns of an index.",
    ),
]
Queries = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Embeddings folder of the queries.  [default: the last test split]",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Embeddings folder to search.  [default: the last one encoded]",
    ),
]
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Embeddings, index or encoder folder.")]
MAX_SEED = 2**32 - 1  # scikit-learn and umap take no larger seed


def seed_option(text: str = "Random seed.") -> Any:
    """Return the option --seed."""
    return typer.Option("--seed", min=0, max=MAX_SEED, help=text)


Seed = Annotated[int, seed_option()]
Ks = Annotated[str, typer.Option("-k", help="Cutoff ranks k of the measures, separated by commas.")]


def parsed_options(pairs: list[str] | None) -> dict[str, str]:
    """Return the options of `--set OPTION=VALUE`. Raises BadInput for text of another form."""
    from retrieval.errors import BadInput

    options = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise BadInput(f"--set {pair} has no option and value; write --set OPTION=VALUE")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


def parsed_metric(name: str | None) -> "Metric | None":
    """Return the metric of this name, hyphens allowed. Raises UnknownName."""
    from retrieval.contracts import Metric

    return None if name is None else parsed_choice("metric", name.replace("-", "_"), Metric)


def parsed_choice(what: str, name: str, choices: type[Choice]) -> Choice:
    """Return the choice of this name. Raises UnknownName, which lists the choices."""
    from retrieval.choices import choice

    return choice(choices, name, what)


def parsed_names(text: str) -> list[str]:
    """Return the names of `cat,dog` or `"a, b",c` in NFC. Raises BadInput for an empty name."""
    import csv

    from retrieval.errors import BadInput
    from retrieval.storage.names import nfc

    try:
        (names,) = csv.reader([text], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        names = text.split(",")
    names = [nfc(name.strip()) for name in names]
    if not all(names):
        raise BadInput(f"'{text}' has an empty name; write names separated by commas: cat,dog")
    return names


def parsed_ks(text: str) -> list[int]:
    """Return the ranks of `-k 1,5,10`, ascending. Raises BadInput unless all are positive."""
    from retrieval.errors import BadInput

    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1:
        raise BadInput(f"-k {text} is not a list of positive numbers; write -k 1,5,10")
    return ks


def is_ray(engine: str, address: str | None) -> bool:
    """Return whether the engine is a Ray cluster, and check that the cluster answers.

    Raises the errors of `retrieval.runtime.ray.check`, and BadInput for an address
    without this engine.
    """
    from retrieval.errors import BadInput
    from retrieval.runtime.engines import Engine

    if parsed_choice("engine", engine, Engine) is Engine.RAY:
        from retrieval.runtime import ray as cluster

        cluster.check(address)
        return True
    if address is not None:
        raise BadInput("--address needs --engine ray; add it, or leave --address out")
    return False


@dataclass(frozen=True, slots=True)
class PartsOptions:
    """The options of an index in parts."""

    parts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of parts to build side by side, each from some of the shards. A search "
            "covers all parts.  [default: one index without parts]",
        ),
    ] = None
    engine: Annotated[
        str,
        typer.Option(
            help="Where to build the parts: local, or ray for a Ray cluster (pip install "
            "'retr[ray]')."
        ),
    ] = "local"
    address: Address = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of a search on a cluster."""

    engine: Annotated[
        str,
        typer.Option(
            help="Where to search: local, or ray for the nodes of a Ray cluster (pip install "
            "'retr[ray]')."
        ),
    ] = "local"
    address: Address = None
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of nodes of the cluster that hold each segment of the index.  "
            "[default: 1]",
        ),
    ] = None
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="If nodes of the cluster are lost, search the rows of the others, and say which "
            "share of the rows that is.",
        ),
    ] = False
    hedge: Annotated[
        bool,
        typer.Option(
            "--hedge",
            help="Ask a second node if one takes longer than 95% of the answers before. Needs "
            "--replicas 2.",
        ),
    ] = False

    def cluster(self) -> "Cluster | None":
        """Return the cluster to search on; None to search in this process.

        Raises the errors of `is_ray`, and BadInput for an option that needs a cluster.
        """
        from retrieval.errors import BadInput

        if not is_ray(self.engine, self.address):
            if self.replicas or self.partial or self.hedge:
                given = (
                    "--replicas" if self.replicas else "--partial" if self.partial else "--hedge"
                )
                raise BadInput(f"{given} needs --engine ray; add it, or leave {given} out")
            return None
        from retrieval.index.fan_out import Tolerance
        from retrieval.index.on_ray import Cluster

        if self.hedge and (self.replicas or 1) < 2:
            raise BadInput("--hedge needs a second replica to ask; add --replicas 2")
        tolerance = Tolerance(self.partial, self.hedge)
        return Cluster(self.address, self.replicas or 1, tolerance)

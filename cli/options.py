"""The options that several commands share, and how their values are read."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from retrieval.contracts import Metric

Choice = TypeVar("Choice", bound=StrEnum)


def limited(threads: int | None) -> int | None:
    """Limit this process to so many threads, before what they belong to is loaded.

    Raises BadInput for less than one, and for more than there are cores.
    """
    from retrieval.errors import BadInput
    from retrieval.runtime.threads import available_cores, limit_threads

    if threads is not None:
        cores = available_cores()
        if not 1 <= threads <= cores:
            raise BadInput(f"--threads {threads} on {cores} cores; give from 1 to {cores}")
        limit_threads(threads)
    return threads


def limited_megapixels(count: int | None) -> int | None:
    """Limit the images that this process decodes, in megapixels.

    Raises BadInput below 1, and for a variable RETR_MAX_MEGAPIXELS that is no such number.
    """
    from retrieval.errors import BadInput
    from retrieval.images.megapixels import limit_megapixels, max_megapixels

    if count is None:
        max_megapixels()
    elif count < 1:
        raise BadInput(f"--max-megapixels {count} is not understood; give 1 or more")
    else:
        limit_megapixels(count)
    return count


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WorkspaceFolder = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        help="The folder of results that are given no other place.  [default: .retr, or "
        "RETR_WORKSPACE]",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The folder that holds data sets, each in a folder by its name.  [default: "
        "RETR_DATA_DIR, else the cache]",
        show_default=False,
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="siamese, siamese-quick, autoencoder, autoencoder-10, pretrained:MODEL or "
        "pretrained:MODEL@LAYER+LAYER (any timm model), toy, a plug-in's name, or a folder that "
        "'retr train' made.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The head of the Ray cluster; auto: the cluster that runs here.  [default: "
        "RAY_ADDRESS, else a Ray that is started for this run]",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where the encoder runs: auto, cpu or cuda.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        callback=limited,
        help="How many threads to use.  [default: as many as there are cores]",
        show_default=False,
    ),
]
MaxMegapixels = Annotated[
    int | None,
    typer.Option(
        "--max-megapixels",
        callback=limited_megapixels,
        help="Maximum size of a decoded image, in megapixels; a JPEG counts at the reduced size at "
        "which it is decoded.  [default: RETR_MAX_MEGAPIXELS, else 100]",
        show_default=False,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="An option of the backend, such as m=32 or ef=200; may be repeated.",
        show_default=False,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="cosine, euclidean, inner_product or manhattan.  [default: the encoder's]",
        show_default=False,
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        metavar="NAME",
        help="The column of images in Parquet or Arrow, or the member in tar archives.  [default: "
        "img, image, jpg, png, pixel_values or the like]",
        show_default=False,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        metavar="NAME",
        help="The column of labels in Parquet or Arrow, or the member or JSON key in tar archives; "
        "'': no labels.  [default: label, labels, fine_label, coarse_label, class or category; "
        "cls in tar archives]",
        show_default=False,
    ),
]
Ks = Annotated[str, typer.Option("-k", help="Ranks to count at, separated by commas.")]


def parsed_options(pairs: list[str] | None) -> dict[str, str]:
    """The options of `--set OPTION=VALUE`. Raises BadInput for what is not such a pair."""
    from retrieval.errors import BadInput

    options = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise BadInput(f"--set {pair} is not understood; write --set OPTION=VALUE")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


BYTES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parsed_quantity(option: str, text: str, units: dict[str, float]) -> float:
    """The quantity of `2GB` or `1.5 ms`. Raises BadInput, with the units that there are."""
    from retrieval.errors import BadInput

    number = text.rstrip("BkKMGTiums ")
    unit = text[len(number) :].strip()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise BadInput(
            f"{option} {text} is not understood; write a number above 0 and its unit, one of "
            f"{', '.join(units)}"
        )
    return value


def parsed_metric(name: str | None) -> "Metric | None":
    """The metric of this name, hyphens allowed. Raises UnknownName."""
    from retrieval.contracts import Metric

    return None if name is None else parsed_choice("metric", name.replace("-", "_"), Metric)


def parsed_choice(what: str, name: str, choices: type[Choice]) -> Choice:
    """The choice of this name. Raises UnknownName, with what there is."""
    from retrieval.choices import choice

    return choice(choices, name, what)


def parsed_names(text: str) -> list[str]:
    """The names of `cat,dog` or `"a, b",c` in NFC. Raises BadInput where one is empty."""
    import csv

    from retrieval.errors import BadInput
    from retrieval.storage.names import nfc

    try:
        (names,) = csv.reader([text], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        names = text.split(",")
    names = [nfc(name.strip()) for name in names]
    if not all(names):
        raise BadInput(f"'{text}' is not understood; write names with commas between: cat,dog")
    return names


def parsed_ks(text: str) -> list[int]:
    """The ranks of `-k 1,5,10`, ascending. Raises BadInput unless all are whole and positive."""
    from retrieval.errors import BadInput

    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1:
        raise BadInput(f"-k {text} is not understood; write positive numbers: -k 1,5,10")
    return ks


class Engine(StrEnum):
    """What does the work."""

    LOCAL = "local"
    RAY = "ray"


def is_ray(engine: str, address: str | None) -> bool:
    """Whether a Ray cluster is to do the work, which has been seen to be there.

    Raises what `cluster.check` raises, and BadInput for an address without the engine.
    """
    from retrieval.errors import BadInput

    if parsed_choice("engine", engine, Engine) is Engine.RAY:
        from retrieval.runtime import ray as cluster

        cluster.check(address)
        return True
    if address is not None:
        raise BadInput("--address is of a Ray cluster; give --engine ray too, or leave it out")
    return False

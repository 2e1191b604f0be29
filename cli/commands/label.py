"""`retr label`: label images by words."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.collections import encoded
from cli.command import command
from cli.options import Device
from cli.output import Output, plural

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.quality.words.labeling import Labeling
    from retrieval.storage.sets.embeddings import Embeddings
    from retrieval.workspace import Workspace

SHOWN_TEMPLATES = 4

FolderArgument = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="Folder of images, which is encoded first where it is new or has changed; or of "
        "embeddings.",
    ),
]

WithOption = Annotated[
    str | None,
    typer.Option(
        "--with",
        metavar="NAME,…",
        help="Names of the classes. 'none of these' stands for images that show none of the "
        "others.",
    ),
]

TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Sentence with {} for the name. Repeatable.  [default: those of the encoder]",
    ),
]

LeastOption = Annotated[
    float,
    typer.Option("--min-probability", min=0, max=1, help="Give no label below this probability."),
]

CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate-on",
        metavar="DIR",
        help="Embeddings with labels, to fit the probabilities to.  [default: the images' own "
        "labels, if at least 50 are among the names]",
    ),
]

EncoderOption = Annotated[
    str | None,
    typer.Option(
        help="Encoder for a folder of images; it must take words.  [default: that of its "
        "embeddings, or else clip:ViT-B-32-256]"
    ),
]

ClearOption = Annotated[
    bool, typer.Option("--clear", help="Take the labels away that this command gave.")
]


@command(threads=True, max_megapixels=True)
def label(
    output: Output,
    workspace: "Workspace",
    folder: FolderArgument,
    names: WithOption = None,
    template: TemplateOption = None,
    least: LeastOption = 0.0,
    calibrate_on: CalibrationOption = None,
    encoder: EncoderOption = None,
    clear: ClearOption = False,
    device: Device = "auto",
) -> None:
    """Label images by words: each gets the nearest class, with a probability.

    The labels take the place of those that the images have, for filters, evaluations and the page
    of 'retr serve'. The probability is the column label_probability. Images that are added later
    have no label until this command runs again.

    Example: retr label photos/ --with "dog,cat,car,none of these"

    Example: retr search --in photos/ img.png --where "label = dog and label_probability > 0.9"
    """
    from retrieval.embedding.embed import Embedder
    from retrieval.errors import BadInput
    from retrieval.quality.words.labeling import label_by_words
    from retrieval.storage.sets.assigned import clear_labels
    from retrieval.storage.sets.embeddings import open_embeddings

    if clear and names is not None:
        raise BadInput("--with and --clear exclude each other; give one of them")
    if not clear and names is None:
        raise BadInput("no classes are given; name them with --with, or take labels away: --clear")
    embeddings = _embeddings(output, workspace, folder, encoder, device)
    if clear:
        clear_labels(embeddings.folder)
        output.say(f"the images of {folder} have their own labels again")
        output.document({"folder": folder, "embeddings": str(embeddings.folder), "labelled": 0})
        return
    other = None if calibrate_on is None else open_embeddings(calibrate_on)
    embedder = Embedder(embeddings.facts.encoder, device, owner=str(embeddings.folder))
    given = [name for name in (names or "").split(",") if name.strip()]
    labeling = label_by_words(embeddings, given, embedder, other, least, template or [])
    _print(output, labeling, folder)
    where: dict[str, JsonValue] = {"folder": folder, "embeddings": str(embeddings.folder)}
    output.document(where | labeling.to_json())


def _embeddings(
    output: Output, workspace: "Workspace", folder: str, encoder: str | None, device: str
) -> "Embeddings":
    """Return the embeddings of the folder, brought up to date if it is of images."""
    from retrieval.storage.places import place_of
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.storage.sets.manifest import MANIFEST

    if (place_of(folder) / MANIFEST).is_file():
        return open_embeddings(folder)
    found, _ = encoded(output, workspace, folder, encoder, device, words=True)
    return found.embeddings


def _print(output: Output, labeling: "Labeling", folder: str) -> None:
    total = len(labeling.classes)
    output.table(
        ("label", "images", "mean probability"),
        [
            (
                name,
                f"{count:,}",
                f"{labeling.probabilities[labeling.classes == place].mean():.3f}" if count else "–",
            )
            for place, (name, count) in enumerate(labeling.counts.items())
        ],
    )
    unlabelled = total - sum(labeling.counts.values())
    if unlabelled:
        output.say(f"{plural(unlabelled, 'image')} below the least probability, without a label")
    if labeling.agreement is not None:
        output.say(
            f"{labeling.agreement:.1%} of {plural(labeling.compared, 'image')} whose own label is "
            "among these got it"
        )
    temperature = labeling.temperature
    if temperature.images:
        output.say(
            f"probabilities fitted to {plural(temperature.images, 'label')}: temperature "
            f"{temperature.value:.3g}, expected calibration error {temperature.error_before:.3f} "
            f"before, {temperature.error_after:.3f} after"
        )
    else:
        output.say(
            "probabilities are the encoder's own, not fitted to labels; fit them with "
            "--calibrate-on"
        )
    templates = labeling.prompts.templates
    further = len(templates) - SHOWN_TEMPLATES
    more = f" and {further} more" if further > 0 else ""
    output.say(f"templates: {', '.join(templates[:SHOWN_TEMPLATES])}{more}")
    output.say(f"{plural(total, 'image')} of {folder}")

"""`retr train`: train an encoder by a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import Data, Device
from cli.output import Output
from retrieval.units import duration

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.storage.cards import Card
    from retrieval.workspace import Workspace


RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of a recipe, or a TOML file.  [default: list the recipes of retr]",
    ),
]

ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting to change, such as epochs=3, optimizer.lr=0.1 or losses.0.weight=2. "
        "Repeatable.",
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(help="Encoder folder to write.  [default: a folder in the workspace]"),
]


@command(threads=True, max_megapixels=True)
def train(
    output: Output,
    workspace: "Workspace",
    recipe: RecipeArgument = None,
    changes: ChangesOption = None,
    out: OutOption = None,
    device: Device = "auto",
    data: Data = None,
) -> None:
    """Train an encoder. The result is a folder for --encoder.

    The folder holds the weights, a card that describes them, and the log and curves of the
    training. Run the same command again to continue a run that was stopped.

    Example: retr train siamese-quick --set epochs=3 --out my-encoder
    """
    from retrieval.registry import open_encoder, open_trainer

    trainer = open_trainer()
    if recipe is None:
        recipes = trainer.recipes()
        output.table(("recipe", "what for"), [*recipes.items()], left=2)
        output.document({"recipes": dict(recipes)})
        return
    settings = changes or []
    for warning in trainer.recipe_warnings(recipe, settings):
        output.warn(warning)
    folder = out or workspace.encoder_folder(recipe)
    with output.progress(f"train {Path(recipe).stem}", "image") as show:
        epochs = _EpochTable(output)
        card = trainer.train(
            recipe, settings, folder, data=data, device=device, on_step=show, on_epoch=epochs.add
        )
    encoder = open_encoder(str(folder.resolve()), device)
    _print(output, card, folder)
    output.document(
        {
            "out": str(folder),
            "recipe": recipe,
            "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
            "dim": card.dim,
            "metric": str(card.metric),
            "minutes": card.training.minutes,
            "metrics": dict(card.training.metrics),
        }
    )


@dataclass(slots=True)
class _EpochTable:
    """A table that is printed line by line, with a header above the first."""

    output: Output
    has_header: bool = False

    def add(self, row: "Mapping[str, JsonValue]") -> None:
        """Print the line of an epoch."""
        if not self.has_header:
            names = f"{'epoch':>5}  {'loss':>8}  {'mAP':>6}  {'P@10':>6}  {'images/s':>8}"
            self.output.say(names)
            self.has_header = True
        self.output.say(
            f"{row['epoch']:>5}  {row['loss']:>8.4f}  {_share(row['map']):>6}  "
            f"{_share(row['precision_at_10']):>6}  {row['images_per_second']:>8,.0f}"
        )


def _print(output: Output, card: "Card", folder: Path) -> None:
    facts = card.training
    unreadable = facts.data.get("unreadable")
    for why in unreadable if isinstance(unreadable, list) else []:
        output.warn(f"not trained on: {why}")
    output.say(
        f"encoder {folder}: {card.dim} dimensions, trained in {duration(60 * facts.minutes)}"
    )
    output.say(
        f"mAP {_share(facts.metrics['map'])}, P@10 {_share(facts.metrics['precision_at_10'])} "
        f"among {facts.metrics['scored_on']}, each left out of its own ranking"
    )
    # A bare name would be that of a registered encoder.
    named = folder if len(folder.parts) > 1 else f"./{folder}"
    output.say(f"use it: retr encode --encoder {named}")


def _share(value: "JsonValue") -> str:
    return "–" if value is None else f"{value:.4f}"

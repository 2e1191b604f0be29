"""`retr train`: an encoder from a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Data, Debug, Device, Json, MaxMegapixels, Quiet, Threads, WorkspaceFolder
from cli.output import Output, duration

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="One of retr's recipes, or a TOML file.  [default: list retr's own]",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting to change, such as epochs=3, optimizer.lr=0.1 or losses.0.weight=2; "
            "may be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The encoder's folder.  [default: one in the workspace]", show_default=False
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    max_megapixels: MaxMegapixels = None,
    data: Data = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an encoder; the result is a folder that --encoder takes.

    The folder holds weights, a card that says where they come from, and the log and curves of
    the training. A run that was stopped goes on where it was when the same command is given
    again.

    Example: retr train siamese-quick --set epochs=3 --out my-encoder
    """
    from retrieval.registry import open_encoder, open_trainer
    from retrieval.workspace import Workspace

    output = Output(json, quiet)
    trainer = open_trainer()
    if recipe is None:
        recipes = trainer.recipes()
        output.table(("recipe", "what for"), [*recipes.items()], left=2)
        output.document({"recipes": dict(recipes)})
        return
    for warning in trainer.recipe_warnings(recipe, changes or []):
        output.warn(warning)
    folder = out or Workspace.at(workspace).encoder_folder(recipe)
    with output.progress(f"train {Path(recipe).stem}", "image") as show:
        first = True

        def on_epoch(row: "Mapping[str, JsonValue]") -> None:
            nonlocal first
            if first:
                output.say(f"{'epoch':>5}  {'loss':>8}  {'mAP':>6}  {'P@10':>6}  {'images/s':>8}")
                first = False
            output.say(
                f"{row['epoch']:>5}  {row['loss']:>8.4f}  {_share(row['map']):>6}  "
                f"{_share(row['precision_at_10']):>6}  {row['images_per_second']:>8,.0f}"
            )

        card = trainer.train(
            recipe,
            changes or [],
            folder,
            data=data,
            device=device,
            on_step=show,
            on_epoch=on_epoch,
        )
    encoder = open_encoder(str(folder.resolve()), device)
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
    output.document(
        {
            "out": str(folder),
            "recipe": recipe,
            "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
            "dim": card.dim,
            "metric": str(card.metric),
            "minutes": facts.minutes,
            "metrics": dict(facts.metrics),
        }
    )


def _share(value: "JsonValue") -> str:
    return "–" if value is None else f"{value:.4f}"

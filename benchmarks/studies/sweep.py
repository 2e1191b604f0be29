"""Train one recipe in several settings: `python -m benchmarks.studies.sweep --help`.

Each combination of the settings is trained into a folder of its own. Its accuracy is measured on
pairs of test images, as same class or not: over classes that it was trained on, over other classes,
and over all. The threshold comes from pairs of images of the training split that it was not trained
on, of the classes that it was. Combinations that exist are not trained again. A table as CSV and a
plot are written beside the folders.
"""

import argparse
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from tqdm import tqdm

from benchmarks.studies.unseen import unseen
from retrieval.contracts import Encoder
from retrieval.drawing.plots import draw_lines
from retrieval.errors import BadInput
from retrieval.pairs.verification import Procedure, class_groups, verify
from retrieval.quality.labelled import Labelled
from retrieval.quality.provenance import Provenance
from retrieval.registry import open_encoder, open_trainer
from retrieval.storage.cards import WEIGHTS, Card
from retrieval.storage.files import made_folder, write_csv

GROUPS = {"trained": "classes trained on", "held_out": "classes held out", "joint": "all classes"}
Row = dict[str, Any]


def combinations(varied: Sequence[str]) -> Iterator[dict[str, str]]:
    """Return each setting's value in each combination. varied: items `KEY=VALUE|VALUE|...`.

    Raises BadInput for another form.
    """
    values: dict[str, list[str]] = {}
    for text in varied:
        key, equals, listed = text.partition("=")
        if not (key and equals and all(listed.split("|"))):
            raise BadInput(
                f"--vary {text} has no key, = and values; write --vary 'KEY=VALUE|VALUE'"
            )
        values[key] = listed.split("|")
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def measure(
    recipe: str, changes: Sequence[str], varied: Sequence[str], out: Path, seed: int = 0
) -> Iterator[Row]:
    """Yield a row for each combination: settings, training, and accuracy over pairs."""
    for chosen in combinations(varied):
        settings = [f"{key}={value}" for key, value in chosen.items()]
        folder = out / (",".join(settings).replace("/", "_") or "as-it-is")
        card = _trained(recipe, [*changes, *settings], folder)
        encoder = open_encoder(f"{card.encoder}:{folder.resolve()}", "cpu")
        tested = _embedded(encoder, card, folder, "test")
        validating = _embedded(encoder, card, folder, "train", card.classes)
        there = {*tested.classes(), *validating.classes()}
        groups = class_groups(there, Provenance(folder, card), None)
        procedure = Procedure(encoder.metric, seed=seed)
        source = str(card.training.data["source"])
        outcome = verify(tested, validating, procedure, encoder.fingerprint, groups, source=source)
        yield {
            **chosen,
            "weights": _weights(folder),
            "minutes": round(card.training.minutes, 1),
            "threshold": outcome.calibration.threshold,
            **{name: of.accuracy for name, of in outcome.groups.items()},
            **{f"{name}_margin": of.margin for name, of in outcome.groups.items()},
        }


def _trained(recipe: str, changes: list[str], folder: Path) -> Card:
    with tqdm(unit="img", desc=folder.name, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return open_trainer().train(
            recipe,
            changes,
            folder,
            data=None,
            device="cpu",
            on_step=show,
            on_epoch=lambda row: None,
        )


def _embedded(
    encoder: Encoder, card: Card, folder: Path, split: str, classes: Collection[str] | None = None
) -> Labelled:
    images, ids, labels = unseen(card, folder, split, classes=classes)
    return Labelled(encoder.encode(images), ids, labels)


def _weights(folder: Path) -> int:
    """Return the number of the encoder's weights."""
    return sum(tensor.size for tensor in load_file(folder / WEIGHTS).values())


def draw(path: Path, rows: Sequence[Row], varied: Sequence[str]) -> None:
    """Plot accuracy over the first varied key, with a line for each choice of the others."""
    first, *others = [text.partition("=")[0] for text in varied]
    panels = {}
    for group, name in GROUPS.items():
        lines: dict[str, list[tuple[str, float]]] = {}
        for row in rows:
            if group in row:
                line = ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in others)
                lines.setdefault(line, []).append((row[first], row[group]))
        if lines:
            panels[name] = lines
    draw_lines(path, panels, first.rpartition(".")[2], "accuracy over pairs")


def main() -> None:
    """Print each row as JSON, and write all rows as CSV and as a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="KEY=VALUE|VALUE",
        help="setting and its values; the first is the x axis",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for encoders, table and plot"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the pairs")
    given = parser.parse_args()
    rows: list[Row] = []
    made_folder(given.out)
    for row in measure(given.recipe, given.set, given.vary, given.out, given.seed):
        rows.append(row)
        print(json.dumps(row), flush=True)
    write_csv(given.out / "sweep.csv", rows)
    draw(given.out / "sweep.png", rows, given.vary)


if __name__ == "__main__":
    main()

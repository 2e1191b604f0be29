"""`retr pairs`: how well distances separate pairs of the same class from others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.command import command
from cli.options import Device, MetricName, Seed, parsed_choice, parsed_metric, parsed_names
from cli.output import Output, plural
from cli.tables import GROUP_TITLES

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.contracts import Metric
    from retrieval.pairs.prepare import PairTest
    from retrieval.pairs.verification import CalibrationTest, Procedure, Verification
    from retrieval.workspace import Workspace

PAIRS_DRAWN = 32  # on the sheet
MAX_CLASSES_SHOWN = 30  # in a table or a picture


@dataclass(frozen=True, slots=True)
class DrawingOptions:
    """The options of how pairs are drawn and judged."""

    count: Annotated[
        int | None,
        typer.Option(
            help="Number of pairs for each group of classes; half of them show the same class.  "
            "[default: 10000, or all pairs with --scheme consecutive]",
        ),
    ] = None
    scheme: Annotated[
        str,
        typer.Option(
            help="How pairs are drawn: random, or consecutive (each image with the next one of "
            "its class, and with the image at the same position in another class)."
        ),
    ] = "random"
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            help="Additional threshold at which the accuracy is measured. Repeatable.",
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Fit of the probabilities: logistic or isotonic.  [default: isotonic; none "
            "with a scorer]",
        ),
    ] = None

    def procedure(self, metric: "Metric", seed: int, has_scorer: bool) -> "Procedure":
        """Return the procedure. Raises UnknownName for a name that is not a choice."""
        from retrieval.pairs.calibration import Method
        from retrieval.pairs.draw import Scheme
        from retrieval.pairs.verification import Procedure

        method = None if has_scorer else Method.ISOTONIC
        if self.calibration:
            method = parsed_choice("calibration", self.calibration, Method)
        scheme = parsed_choice("scheme", self.scheme, Scheme)
        return Procedure(metric, self.count, scheme, seed, method, tuple(self.threshold or ()))


EmbeddingsArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR",
        help="Embeddings folder of the test images.  [default: the last test split]",
    ),
]

ValidationOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Embeddings folder of other images, to fit threshold and probability. Images "
        "that the encoder was trained on are left out.  [default: a fifth of the test "
        "images]",
    ),
]

ClassesOption = Annotated[
    str | None,
    typer.Option(
        help="Classes to draw pairs from, separated by commas.  [default: all]",
    ),
]

HeldOutOption = Annotated[
    str | None,
    typer.Option(
        help="Classes that the encoder was not trained on, separated by commas.  [default: "
        "those not named by the encoder's card]",
    ),
]

SaveOption = Annotated[
    bool, typer.Option(help="Save threshold and probabilities for 'retr compare'.")
]

ScorerOption = Annotated[
    str | None,
    typer.Option(
        help="Folder made by 'retr train layers': use its probability instead of the "
        "embeddings' distance, for at most 500 images.",
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for plots, a sheet of random pairs, and all numbers as JSON.",
    ),
]


@command(threads=True, max_megapixels=True, root=True)
def pairs(
    output: Output,
    workspace: "Workspace",
    embeddings: EmbeddingsArgument = None,
    validation: ValidationOption = None,
    classes: ClassesOption = None,
    held_out: HeldOutOption = None,
    *,
    drawing: DrawingOptions,
    save: SaveOption = False,
    scorer: ScorerOption = None,
    metric: MetricName = None,
    seed: Seed = 0,
    out: OutOption = None,
    device: Device = "auto",
) -> None:
    """Measure how well distances separate classes, on pairs of images.

    The threshold is fitted to pairs of validation images that the encoder was not trained on. The
    test pairs are of other images. Results are given for all classes, for classes that the encoder
    was trained on, and for classes that it was not trained on.

    Example: retr pairs test-embeddings --threshold 0.5 --out pairs
    """
    from retrieval.errors import BadInput
    from retrieval.pairs.prepare import prepare_pair_test
    from retrieval.registry import open_scorer
    from retrieval.storage.files import made_folder
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.workspace import Role

    test = open_embeddings(
        embeddings or workspace.needed(Role.QUERIES, "retr encode --split test", "EMBEDDINGS")
    )
    others = None if validation is None else open_embeddings(validation)
    if scorer is not None and metric is not None:
        raise BadInput("--scorer uses no metric; leave --metric or --scorer out")
    judge = None if scorer is None else open_scorer(scorer, device)
    prepared = prepare_pair_test(
        test,
        others,
        drawing.procedure(parsed_metric(metric) or test.facts.metric, seed, judge is not None),
        scorer=judge,
        classes=None if classes is None else parsed_names(classes),
        held_out=parsed_names(held_out) if held_out else None,
        warn=output.warn,
    )
    if out is not None:
        made_folder(out)  # before the work
    outcome = prepared.run(output.warn)
    _print(output, prepared, outcome, own_validation=others is not None)
    output.document(_document(prepared, outcome))
    if save:
        _save(output, workspace, prepared, outcome)
    if out is not None:
        _report(out, prepared, outcome, seed)
        output.say(f"written into {out}")


def _save(
    output: Output, workspace: "Workspace", prepared: "PairTest", outcome: "CalibrationTest"
) -> None:
    """Save the calibration for `retr compare`."""
    from dataclasses import replace

    from retrieval.pairs.calibration import place_to_keep

    calibration = replace(outcome.calibration, ece=outcome.groups["joint"].ece)
    path = place_to_keep(
        prepared.judge, calibration.metric, workspace.calibrations_folder(prepared.judge)
    )
    instead = ", replacing an older calibration" if path.exists() else ""
    calibration.write(path)
    output.say(f"saved for 'retr compare'{instead}: {path}")


def _print(
    output: Output, prepared: "PairTest", outcome: "CalibrationTest", own_validation: bool
) -> None:
    """Print the threshold, and the accuracy of each group of classes and of each two classes.

    own_validation: the validation images are a set of their own.
    """
    fitted_to = outcome.calibration.fitted_to
    output.say(
        f"same class up to {prepared.measured} {outcome.calibration.threshold:.4g}, by "
        f"{plural(fitted_to.pairs, 'pair')} of {plural(fitted_to.images, 'image')} that "
        + (f"{prepared.judge.name} was not trained on" if own_validation else "are not tested")
    )
    output.say()
    groups = outcome.groups
    asked = [*groups["joint"].accuracy_at]
    output.table(
        ("classes", "pairs", "accuracy", *(f"at {t:g}" for t in asked), "AUC", "EER", "ECE"),
        [
            (
                f"{GROUP_TITLES[name]} ({len(of.classes)})",
                f"{of.pairs:,}",
                f"{of.accuracy:.4f} ± {of.margin:.4f}",
                *(f"{of.accuracy_at[t]:.4f}" for t in asked),
                f"{of.auc:.4f}",
                f"{of.eer:.4f}",
                f"{of.ece:.4f}",
            )
            for name, of in groups.items()
        ],
    )
    reasons = {why: name for name, why in outcome.left_out.items()}
    if len(reasons) < len(outcome.left_out):
        output.say(f"no groups of classes: {next(iter(reasons))}")
    else:
        for why, name in reasons.items():
            output.say(f"no pairs of classes {GROUP_TITLES[name]}: {why}")
    _print_matrix(output, groups["joint"])


def _print_matrix(output: Output, joint: "Verification") -> None:
    """Print the accuracy over the pairs of each two classes."""
    output.say()
    if len(joint.classes) > MAX_CLASSES_SHOWN:
        output.say(f"accuracy by class: --json has it for {len(joint.classes):,} classes")
        return
    output.table(
        ("accuracy", *(name[:10] for name in joint.classes)),
        [
            (name, *("–" if value != value else f"{value:.3f}" for value in line))
            for name, line in zip(joint.classes, joint.matrix().tolist(), strict=True)
        ],
    )


def _document(prepared: "PairTest", outcome: "CalibrationTest") -> "dict[str, JsonValue]":
    from dataclasses import asdict

    groups: dict[str, JsonValue] = dict.fromkeys(GROUP_TITLES)
    groups |= {name: of.to_json() for name, of in outcome.groups.items()}
    joint = outcome.groups["joint"].to_json()
    del joint["per_class"]
    calibration = outcome.calibration
    return {
        **joint,
        "threshold": calibration.threshold,
        "measured": prepared.measured,
        "validation": asdict(calibration.fitted_to),
        "groups": groups,
        "left_out": dict(outcome.left_out),
    }


def _report(folder: Path, prepared: "PairTest", outcome: "CalibrationTest", seed: int) -> None:
    """Write plots, a sheet of random pairs, and all numbers with the points of the ROC."""
    from cli.pictures import draw_pairs
    from retrieval.drawing.plots import draw_distances, draw_matrix, draw_roc
    from retrieval.storage.files import made_folder, write_json

    made_folder(folder)
    joint, calibration = outcome.groups["joint"], outcome.calibration
    roc = {name: of.roc_points() for name, of in outcome.groups.items()}
    write_json(
        folder / "pairs.json", _document(prepared, outcome) | {"roc": cast("JsonValue", roc)}
    )
    draw_roc(folder / "roc.png", {GROUP_TITLES[name]: points for name, points in roc.items()})
    if len(joint.classes) <= MAX_CLASSES_SHOWN:
        draw_matrix(folder / "matrix.png", joint.classes, joint.matrix())
    alike = outcome.pairs.alike
    draw_distances(
        folder / "distances.png", outcome.distances, alike, calibration, prepared.measured
    )
    heading = f"same class up to {prepared.measured} {calibration.threshold:.4g}"
    draw_pairs(folder / "pairs.png", prepared.tested, outcome, heading, PAIRS_DRAWN, seed)

"""`retr pairs`: same class or not, and how well distances tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.command import command
from cli.options import (
    Device,
    MetricName,
    parsed_choice,
    parsed_metric,
    parsed_names,
)
from cli.output import Output, plural

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.pairs.verification import Outcome
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.provenance import Provenance
    from retrieval.storage.shards import Embeddings
    from retrieval.workspace import Workspace

SHOWN = 32  # pairs on the sheet
MOST_SCORED = 500  # images that a scorer keeps the maps of, 2 MB each
MOST_CLASSES = 30  # in a table or a picture
GROUPS = {"joint": "all", "trained": "trained on", "held_out": "held out"}


@command(threads=True, max_megapixels=True)
def pairs(
    output: Output,
    workspace: "Workspace",
    embeddings: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR",
            help="The embeddings folder of the test images.  [default: the last test split]",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Embeddings of other images, which give threshold and probability; those that "
            "the encoder was trained on are left out.  [default: a fifth of the test images]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes to draw pairs from, separated by commas.  [default: all]",
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Classes that the encoder was not trained on, separated by commas.  [default: "
            "as the encoder's card says]",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Pairs of each group, half of them alike.  [default: 10000, or all that the "
            "scheme consecutive has]",
        ),
    ] = None,
    scheme: Annotated[
        str,
        typer.Option(
            help="random; or consecutive: each image with the next of its class, then with the "
            "one at its own place in another class."
        ),
    ] = "random",
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            help="A distance at which accuracy is measured too; may be repeated.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="How probabilities are fitted: logistic or isotonic.  [default: isotonic; a "
            "scorer's own probability as it is]",
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option(help="Keep threshold and probability for 'retr compare'.")
    ] = False,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="A folder that 'retr train layers' made: judge by its probability, in place of "
            "the embeddings' distance; of 500 images at most.",
        ),
    ] = None,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for plots, a sheet of random pairs, and all numbers as JSON.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure how well distances tell pairs of the same class from others.

    The threshold comes from pairs of validation images that the encoder was not trained on; the
    test pairs are of other images. Classes that it was trained on, classes that it was not, and
    all together are reported apart.

    Example: retr pairs test-embeddings --threshold 0.5 --out pairs
    """
    from dataclasses import replace

    from retrieval.errors import BadInput
    from retrieval.pairs.calibration import Method, place_to_keep
    from retrieval.pairs.comparing import improbability
    from retrieval.pairs.draw import Scheme
    from retrieval.pairs.verification import TRAINED, Procedure, class_groups, verify
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.provenance import known_provenance
    from retrieval.registry import open_scorer
    from retrieval.storage.files import made_folder
    from retrieval.storage.shards import EncoderFacts, open_embeddings
    from retrieval.workspace import Role

    test = open_embeddings(
        embeddings or workspace.needed(Role.QUERIES, "retr encode --split test", "EMBEDDINGS")
    )
    others = None if validation is None else open_embeddings(validation)
    if scorer is not None and metric is not None:
        raise BadInput("a scorer judges by no metric; leave --metric or --scorer away")
    judge = None if scorer is None else open_scorer(scorer, device)
    facts = test.facts.encoder
    method = None if judge else Method.ISOTONIC
    if calibration:
        method = parsed_choice("calibration", calibration, Method)
    procedure = Procedure(
        parsed_metric(metric) or test.facts.metric,
        count,
        parsed_choice("scheme", scheme, Scheme),
        seed,
        method,
        tuple(threshold or ()),
    )
    judged_by = facts if judge is None else EncoderFacts.of(judge)
    trained = known_provenance(judged_by, output.warn)

    images = Labelled.of(test)
    chosen = parsed_names(classes) if classes is not None else None
    new = parsed_names(held_out) if held_out else None
    images.check_classes([*(chosen or ()), *(new or ())])
    tested, validating = _split(output, test, images, others, trained, seed)
    if chosen is not None:
        tested = tested.of_classes(chosen)
    groups = class_groups({*images.classes(), *validating.classes()}, trained, new)
    distances_of = None
    if judge is not None:
        tested, validating = (side.sample(MOST_SCORED, seed) for side in (tested, validating))
        distances_of = improbability(judge)
    rows = tested.rows_of_classes()
    for name in chosen or images.classes():
        if rows[name] < 2:
            some = "a single image" if rows[name] else "no image"
            output.warn(f"class '{name}' has {some} to test, and so no pair that is alike")
    if out is not None:
        made_folder(out)  # before the work
    outcome = verify(
        tested,
        validating,
        procedure,
        judged_by.fingerprint,
        groups,
        distances_of,
        (others or test).facts.source.name,
    )

    calibration_pairs = outcome.calibration.fitted_to
    known = groups.get(TRAINED, {*calibration_pairs.classes})
    if not known.issuperset(calibration_pairs.classes):
        output.warn(
            "among the validation images are no two classes that the encoder was trained on: the "
            "threshold comes from pairs of held-out classes, which flatters the accuracy over them"
        )
    measured = f"{procedure.metric} distance" if judge is None else f"1 - p of {judge.name}"
    output.say(
        f"same class up to {measured} {outcome.calibration.threshold:.4g}, by "
        f"{plural(calibration_pairs.pairs, 'pair')} of "
        f"{plural(calibration_pairs.images, 'image')} that "
        + ("are not tested" if others is None else f"{judged_by.name} was not trained on")
    )
    _print(output, outcome)
    output.document(_document(outcome, measured))
    if save:
        kept = replace(outcome.calibration, ece=outcome.groups["joint"].ece)
        path = place_to_keep(judged_by, kept.metric, workspace)
        instead = ", in place of one before" if path.exists() else ""
        kept.write(path)
        output.say(f"kept for 'retr compare'{instead}: {path}")
    if out is not None:
        _report(out, tested, outcome, measured, seed)
        output.say(f"drawn into {out}")


def _split(
    output: Output,
    test: "Embeddings",
    images: "Labelled",
    others: "Embeddings | None",
    trained: "Provenance | None",
    seed: int,
) -> "tuple[Labelled, Labelled]":
    """The images to test, and others for validation that the encoder was not trained on."""
    import numpy as np

    from retrieval.errors import Mismatch
    from retrieval.index.folder import check_same_encoder
    from retrieval.pairs.verification import check_apart, split
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.provenance import seen

    known = seen(images, test.facts.source, trained)
    if known.any():
        output.warn(
            f"the encoder was trained on {plural(int(known.sum()), 'image')} of {test.folder}, "
            "which flatters what follows; give images that it has not seen"
        )
    if others is not None:
        check_same_encoder(
            test.facts.encoder, others.facts.encoder, str(test.folder), str(others.folder)
        )
        given = Labelled.of(others)
        validating = given.take(np.flatnonzero(~seen(given, others.facts.source, trained)))
        check_apart(images, validating, test.facts.source, others.facts.source)
        where = others.folder
    else:
        images, validating = split(images, known, seed)
        where = test.folder
    if not len(validating):
        raise Mismatch(
            f"the encoder was trained on all images of {where}, or there are fewer than 4 of each "
            "class, so that none is left for validation; give others with --validation"
        )
    return images, validating


def _print(output: Output, outcome: "Outcome") -> None:
    output.say()
    groups = outcome.groups
    asked = [*groups["joint"].accuracy_at]
    output.table(
        ("classes", "pairs", "accuracy", *(f"at {t:g}" for t in asked), "AUC", "EER", "ECE"),
        [
            (
                f"{GROUPS[name]} ({len(of.classes)})",
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
            output.say(f"no pairs of classes {GROUPS[name]}: {why}")
    output.say()
    joint = groups["joint"]
    if len(joint.classes) > MOST_CLASSES:
        output.say(f"accuracy by class: --json has it for {len(joint.classes):,} classes")
        return
    output.table(
        ("accuracy", *(name[:10] for name in joint.classes)),
        [
            (name, *("–" if value != value else f"{value:.3f}" for value in line))
            for name, line in zip(joint.classes, joint.matrix().tolist(), strict=True)
        ],
    )


def _document(outcome: "Outcome", measured: str) -> "dict[str, JsonValue]":
    from dataclasses import asdict

    groups: dict[str, JsonValue] = dict.fromkeys(GROUPS)
    groups |= {name: of.to_json() for name, of in outcome.groups.items()}
    joint = outcome.groups["joint"].to_json()
    del joint["per_class"]
    calibration = outcome.calibration
    return {
        **joint,
        "threshold": calibration.threshold,
        "measured": measured,
        "validation": asdict(calibration.fitted_to),
        "groups": groups,
        "left_out": dict(outcome.left_out),
    }


def _report(folder: Path, tested: "Labelled", outcome: "Outcome", measured: str, seed: int) -> None:
    """Plots, a sheet of random pairs, and all numbers with the points of the ROC."""
    from cli.pictures import draw_pairs
    from retrieval.drawing.plots import draw_distances, draw_matrix, draw_roc
    from retrieval.storage.files import made_folder, write_json

    made_folder(folder)
    joint, calibration = outcome.groups["joint"], outcome.calibration
    roc = {name: of.roc_points() for name, of in outcome.groups.items()}
    write_json(
        folder / "pairs.json", _document(outcome, measured) | {"roc": cast("JsonValue", roc)}
    )
    draw_roc(folder / "roc.png", {GROUPS[name]: points for name, points in roc.items()})
    if len(joint.classes) <= MOST_CLASSES:
        draw_matrix(folder / "matrix.png", joint.classes, joint.matrix())
    alike = outcome.pairs.alike
    draw_distances(folder / "distances.png", outcome.distances, alike, calibration, measured)
    heading = f"same class up to {measured} {calibration.threshold:.4g}"
    draw_pairs(folder / "pairs.png", tested, outcome, heading, SHOWN, seed)

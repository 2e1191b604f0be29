"""`retr pairs`: same class or not, and how well distances tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.options import (
    Debug,
    Device,
    Json,
    MetricName,
    Quiet,
    WorkspaceFolder,
    parsed_choice,
    parsed_metric,
    parsed_names,
)
from cli.output import Output, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retrieval.contracts import Json as JsonValue
    from retrieval.evaluation import Labelled
    from retrieval.shards import Embeddings
    from retrieval.verification import Outcome

SHOWN = 32  # pairs on the sheet
MOST_SCORED = 1_000  # images that a scorer keeps the maps of, 2 MB each
GROUPS = {"joint": "all", "trained": "trained on", "held_out": "held out"}


def pairs(
    embeddings: Annotated[
        Path | None,
        typer.Argument(
            help="The embeddings folder of the test images.  [default: the last test split]",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Embeddings of other images, which give threshold and probability; those that "
            "the encoder was trained on are left out.  [default: a fifth of the test images]",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes to draw pairs from, separated by commas.  [default: all]",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Classes that the encoder was not trained on, separated by commas.  [default: "
            "as the encoder's card says]",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Pairs of each group, half of them alike.  [default: 10000, or all that the "
            "scheme consecutive has]",
            show_default=False,
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
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="How probabilities are fitted: logistic or isotonic.")
    ] = "logistic",
    save: Annotated[
        bool, typer.Option(help="Keep threshold and probability for 'retr compare'.")
    ] = False,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="A folder that 'retr train layers' made: judge by its probability, in place of "
            "the embeddings' distance; at most 1,000 images are taken.",
            show_default=False,
        ),
    ] = None,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for plots, a sheet of random pairs, and all numbers as JSON.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    workspace: WorkspaceFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure how well distances tell pairs of the same class from others.

    The threshold comes from pairs of validation images that the encoder was not trained on; the
    test pairs are of other images. Classes that it was trained on, classes that it was not, and
    all together are reported apart.

    Example: retr pairs test-embeddings --threshold 0.5 --out pairs
    """
    from retrieval.calibration import Method, place_to_keep
    from retrieval.comparing import improbability
    from retrieval.errors import BadInput
    from retrieval.evaluation import paths_of
    from retrieval.pairs import Scheme
    from retrieval.registry import open_scorer, trained_folder
    from retrieval.shards import open_embeddings
    from retrieval.verification import Protocol, trained_classes, verify
    from retrieval.workspace import Role, Workspace

    output = Output(json, quiet)
    place = Workspace.at(workspace)
    test = open_embeddings(
        embeddings or place.needed(Role.QUERIES, "retr encode --split test", "EMBEDDINGS")
    )
    facts = test.facts.encoder
    protocol = Protocol(
        parsed_metric(metric) or test.facts.metric,
        count,
        parsed_choice("scheme", scheme, Scheme),
        seed,
        parsed_choice("calibration", calibration, Method),
        tuple(threshold or ()),
    )
    if save and scorer is not None:
        raise BadInput("a scorer has a probability of its own; leave --save or --scorer away")
    judge = None if scorer is None else open_scorer(scorer, device)
    folder = trained_folder(facts.name if judge is None else judge.name)
    others = test if validation is None else open_embeddings(validation)
    paths = paths_of(test) | paths_of(others)
    tested, validating, said = _images(output, test, others, folder, seed)
    if classes is not None:
        wanted = parsed_names(classes)
        tested, validating = (side.of_classes(wanted) for side in (tested, validating))
    for name in tested.single():
        output.warn(f"class '{name}' has a single image, and so no pair that is alike")
    trained = trained_classes(folder, tested, None if held_out is None else parsed_names(held_out))
    distances_of = None
    if judge is not None:
        tested, validating = (side.sample(MOST_SCORED, seed) for side in (tested, validating))
        distances_of = improbability(judge, paths)
    outcome = verify(tested, validating, protocol, facts.fingerprint, trained, distances_of)
    measured = f"{protocol.metric} distance" if judge is None else f"1 - p of {judge.name}"
    output.say(said)
    _print(output, outcome, measured)
    if save:
        path = place_to_keep(facts, place.folder)
        outcome.calibration.write(path)
        output.say(f"kept for 'retr compare': {path}")
    if out is not None:
        _report(out, tested, paths, outcome, measured)
        output.say(f"drawn into {out}")
    output.document(_document(outcome, measured))


def _images(
    output: Output, test: "Embeddings", others: "Embeddings", encoder: Path | None, seed: int
) -> "tuple[Labelled, Labelled, str]":
    """The test images, the validation images among the others, and what these are.

    others: may be the test images, of which a fifth is taken then.
    encoder: its folder, if it has one.
    """
    from retrieval.evaluation import Labelled
    from retrieval.indexing import check_same_encoder
    from retrieval.verification import check_apart, not_trained_on

    tested = Labelled.of(test)
    seen = len(tested) - len(not_trained_on(test, encoder))
    if seen:
        output.warn(
            f"the encoder was trained on {plural(seen, 'image')} of {test.folder}, which flatters "
            "what follows; give images that it has not seen"
        )
    if others is test:
        validating, tested = tested.held_out(len(tested) // 5, seed)
        said = f"threshold from {plural(len(validating), 'image')} that are not tested"
        return tested, validating, said
    check_same_encoder(
        test.facts.encoder, others.facts.encoder, str(test.folder), str(others.folder)
    )
    validating = not_trained_on(others, encoder)
    check_apart(tested, validating)
    return (
        tested,
        validating,
        f"threshold from {len(validating):,} of {plural(len(others), 'image')} of {others.folder}: "
        "those that the encoder was not trained on",
    )


def _print(output: Output, outcome: "Outcome", measured: str) -> None:
    calibration = outcome.calibration
    output.say(
        f"same class up to {measured} {calibration.threshold:.4g}, by "
        f"{plural(calibration.pairs, 'validation pair')}"
    )
    output.say()
    groups = outcome.groups
    asked = [*next(iter(groups.values())).accuracy_at]
    output.table(
        ("classes", "pairs", "accuracy", *(f"at {t:g}" for t in asked), "AUC", "EER", "ECE"),
        [
            (
                f"{GROUPS[name]} ({len(of.classes)})",
                f"{of.pairs:,}",
                f"{of.accuracy:.4f}",
                *(f"{of.accuracy_at[t]:.4f}" for t in asked),
                f"{of.auc:.4f}",
                f"{of.eer:.4f}",
                f"{of.ece:.4f}",
            )
            for name, of in groups.items()
        ],
    )
    output.say()
    joint = groups["joint"]
    output.table(
        ("accuracy", *(name[:10] for name in joint.classes)),
        [
            (name, *("–" if value != value else f"{value:.3f}" for value in line))
            for name, line in zip(joint.classes, joint.matrix.tolist(), strict=True)
        ],
    )


def _document(outcome: "Outcome", measured: str) -> "dict[str, JsonValue]":
    groups: dict[str, JsonValue] = {name: of.to_json() for name, of in outcome.groups.items()}
    joint = outcome.groups["joint"].to_json()
    calibration = outcome.calibration
    return {
        **{key: joint[key] for key in ("pairs", "accuracy", "accuracy_at", "auc", "eer", "ece")},
        "threshold": calibration.threshold,
        "measured": measured,
        "validation_pairs": calibration.pairs,
        "groups": groups,
    }


def _report(
    folder: Path,
    tested: "Labelled",
    paths: "Mapping[str, str | None]",
    outcome: "Outcome",
    measured: str,
) -> None:
    """Plots, a sheet of random pairs, and all numbers with the points of the ROC."""
    from cli.pictures import draw_pairs
    from retrieval.files import made_folder, write_json
    from retrieval.plots import draw_distances, draw_matrix, draw_roc

    made_folder(folder)
    joint = outcome.groups["joint"]
    roc = {name: of.roc_points() for name, of in outcome.groups.items()}
    write_json(
        folder / "pairs.json", _document(outcome, measured) | {"roc": cast("JsonValue", roc)}
    )
    draw_roc(folder / "roc.png", {GROUPS[name]: points for name, points in roc.items()})
    draw_matrix(folder / "matrix.png", joint.classes, joint.matrix)
    draw_distances(
        folder / "distances.png",
        outcome.distances,
        outcome.pairs.alike,
        outcome.calibration,
        measured,
    )
    heading = f"same class up to {measured} {outcome.calibration.threshold:.4g}"
    draw_pairs(folder / "pairs.png", tested, paths, outcome, heading, SHOWN)

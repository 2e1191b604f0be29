"""`retr compare`: the distance of two images, and whether they show the same class."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.options import (
    Device,
    EncoderName,
    MetricName,
    parsed_metric,
)
from cli.output import Output, distinguishable, plural

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.pairs.calibration import Calibration
    from retrieval.pairs.comparing import ImagePair, PairComparison
    from retrieval.workspace import Workspace


MAX_PAIRS_DRAWN = 100  # on a sheet


ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[A B]", help="Two images to compare."),
]

PairsOption = Annotated[
    Path | None,
    typer.Option(
        help="CSV file with two images a line, instead of A and B. Paths are relative to "
        "its folder.",
    ),
]

ScorerOption = Annotated[
    str | None,
    typer.Option(
        help="layers, to print the mean squared difference in each layer of a network; or a "
        "folder made by 'retr train layers', to use its probability.",
    ),
]

SheetOption = Annotated[
    Path | None,
    typer.Option(help="Draw the pairs and their scores into this PNG file."),
]


@command(threads=True, max_megapixels=True)
def compare(
    output: Output,
    workspace: "Workspace",
    images: ImagesArgument = None,
    pairs: PairsOption = None,
    encoder: EncoderName = "siamese",
    metric: MetricName = None,
    scorer: ScorerOption = None,
    sheet: SheetOption = None,
    device: Device = "auto",
) -> None:
    """Print the distance between two images.

    Also print the probability that they show the same class, if it is known: 'retr pairs --save'
    fits it, and some encoders come with one.

    Example: retr compare cat.png dog.png --sheet pair.png
    """
    from cli.pictures import draw_compared
    from retrieval.errors import BadInput
    from retrieval.pairs.calibration import find_calibration
    from retrieval.pairs.comparing import compare, knows_probability
    from retrieval.registry import open_encoder, open_scorer
    from retrieval.storage.sets.manifest import EncoderFacts

    asked = _asked(output, images or [], pairs)
    opened = open_encoder(encoder, device)
    chosen = parsed_metric(metric) or opened.metric
    facts = EncoderFacts.of(opened)
    calibration = find_calibration(facts, chosen, workspace.calibrations_folder(facts))
    layers = of_layers = None
    if scorer is not None:
        layers = open_scorer(scorer, device)
        judge = EncoderFacts.of(layers)
        of_layers = find_calibration(judge, None, workspace.calibrations_folder(judge))
        if knows_probability(layers):
            calibration = None
    answers, failed = compare(asked, opened, chosen, calibration, layers, of_layers)
    said = [
        f"{error}" if pair.line is None else f"{pairs} line {pair.line}: {error}"
        for pair, error in failed
    ]
    last = None if answers else said.pop()
    for problem in said:
        output.warn(problem)
    if last is not None:
        raise BadInput(f"{last}; give images that can be read")
    _print(output, answers, str(chosen), opened.name, of_layers or calibration)
    documents: list[JsonValue] = [
        answer.to_json() | ({} if pair.line is None else {"line": pair.line})
        for pair, answer in answers
    ]
    output.document(documents if pairs is not None else documents[0])
    if sheet is not None:
        drawn = answers[:MAX_PAIRS_DRAWN]
        draw_compared(sheet, drawn, f"{opened.name}, {chosen} distance")
        output.say(f"drawn: {sheet}, {len(drawn):,} of {plural(len(answers), 'pair')}")


def _asked(output: Output, images: list[str], pairs: Path | None) -> "list[ImagePair]":
    from retrieval.errors import BadInput
    from retrieval.pairs.comparing import ImagePair, read_pairs

    if pairs is None:
        if len(images) != 2:
            raise BadInput(
                f"{plural(len(images), 'image')} given, not 2; give two, or a CSV with --pairs"
            )
        return [ImagePair.of(*images)]
    if images:
        raise BadInput("images and --pairs exclude each other; give one of them")
    asked, problems = read_pairs(pairs)
    for problem in problems:
        output.warn(f"skipped {pairs} {problem}; write two images, separated by a comma")
    if not asked:
        raise BadInput(f"{pairs} has no pair; write two images a line, separated by a comma")
    return asked


def _print(
    output: Output,
    answers: "list[tuple[ImagePair, PairComparison]]",
    metric: str,
    encoder: str,
    calibration: "Calibration | None",
) -> None:
    def probability(answer: "PairComparison") -> str:
        return "–" if answer.probability_same is None else f"{answer.probability_same:.4f}"

    distances = distinguishable([answer.distance for _, answer in answers])
    if len(answers) == 1:
        _, answer = answers[0]
        output.say(f"{metric} distance {distances[0]} by {encoder}")
        if answer.same is not None:
            said = "the same class" if answer.same else "not the same class"
            output.say(f"{said}; probability that they are the same {probability(answer)}")
    else:
        output.table(
            ("a", "b", "distance", "p of the same"),
            [
                (answer.a, answer.b, distance, probability(answer))
                for (_, answer), distance in zip(answers, distances, strict=True)
            ],
            left=2,
        )
        output.say(f"{plural(len(answers), 'pair')}, {metric} distance by {encoder}")
    if len(answers) == 1 and answers[0][1].layers is not None:
        output.say()
        output.table(
            ("layer", "mean squared difference"),
            [(name, f"{value:.4g}") for name, value in answers[0][1].layers.items()],
        )
    if calibration is not None:
        of = calibration.fitted_to
        met = "" if calibration.ece is None else f", expected error {calibration.ece:.4f}"
        output.say(f"calibrated on {plural(of.pairs, 'pair')} of {of.source}{met}")
    if answers[0][1].probability_same is None:
        output.say("no probability: this encoder is not calibrated; run 'retr pairs --save'")

"""Compare the choices of `auto` with the best choice: `python -m benchmarks.studies.choice --help`.

Every candidate is built over all rows. For each target, each gets the lowest effort that reaches
it. The fastest of them, and the choice of `auto`, are then timed in turns.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.peers.__main__ import embedded, pixels
from benchmarks.suite import machine
from retrieval.choices import choice
from retrieval.contracts import Index, Json, Metric, Vectors
from retrieval.index.auto.budget import Budget
from retrieval.index.auto.final import best_of
from retrieval.index.auto.halving import Candidate, Trials, candidates_of
from retrieval.index.auto.measuring import Stage, TuningQueries
from retrieval.index.auto.trials import Target, Tried, named, ranked_trials

RECALLS = (0.9, 0.95, 0.99)
COMPARED = 4  # candidates that are timed in turns with the choice
ROUNDS = 7

Built = dict[Candidate, tuple[Index, Path, float]]
"""The index of each candidate, its folder, and the seconds that its build took."""


def compare(
    vectors: Vectors, metric: Metric | str, recalls: Sequence[float] = RECALLS
) -> list[dict[str, Json]]:
    """Return the choice for each target, the best candidate, and the ratio of their times.

    vectors: (n, dim). Queries are rows that are held out of the samples.
    """
    metric = choice(Metric, metric)
    asked = TuningQueries.of(vectors, None, 0)
    found: list[dict[str, Json]] = []
    with TemporaryDirectory(prefix="retr-choice-") as temporary:
        folder = Path(temporary)
        chosen: list[tuple[Target, Tried, float]] = []
        for recall, batches in product(recalls, (False, True)):
            target = Target(recall, batches=batches)
            place = folder / f"{recall}-{batches}"
            place.mkdir()
            budget = Budget()
            trials = Trials(vectors, asked, metric, target, place, budget, lambda _: None)
            best, _ = best_of(trials, trials.over_samples(0))
            chosen.append((target, best, budget.elapsed))
            print(named(best.backend, best.trial.setting), f"in {budget.elapsed:.0f} s", flush=True)
        stage = trials.stage(len(vectors), None)
        built = _built(vectors, metric, folder)
        for target, best, seconds in chosen:
            found.append(_compared(stage, target, best, built) | {"seconds": seconds})
            print(json.dumps(found[-1]), flush=True)
    return found


def _built(vectors: Vectors, metric: Metric, folder: Path) -> Built:
    built: Built = {}
    rows, dim = vectors.shape
    for backend, candidate in candidates_of(metric, rows, dim, 0, False):
        began = time.perf_counter()
        place = folder / f"candidate-{len(built)}"
        place.mkdir()
        candidate.build(vectors).save(place)
        seconds = time.perf_counter() - began
        built[backend, candidate] = candidate.load(place), place, seconds
    return built


def _compared(stage: Stage, target: Target, best: Tried, built: Built) -> dict[str, Json]:
    """Return the choice, the best candidate, and the median ratio of their times."""
    trials = [
        stage.measured(backend, candidate, index, folder, seconds, target)
        for (backend, candidate), (index, folder, seconds) in built.items()
    ]
    own = best.chosen.load(best.folder)
    rivals = ranked_trials(trials, target)[:COMPARED]
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        times.setdefault("auto", []).append(stage.timed(own, target.batches)[0])
        for rival in rivals:
            index, *_ = built[rival.key]
            rival.chosen.apply(index)
            name = named(rival.backend, rival.trial.setting)
            times.setdefault(name, []).append(stage.timed(index, target.batches)[0])
    medians = {name: median(values) for name, values in times.items()}
    fastest = min(medians, key=lambda name: medians[name])
    ratios = [own / other for own, other in zip(times["auto"], times[fastest], strict=True)]
    return {
        "recall": target.recall,
        "batches": target.batches,
        "choice": named(best.backend, best.trial.setting),
        "best": fastest,
        "ratio": median(ratios),
        "microseconds": {name: 1e6 * value for name, value in medians.items()},
    }


def main() -> None:
    """Print the comparison of each target as a JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embeddings", type=Path, nargs=2, metavar=("QUERIES", "DATABASE"))
    parser.add_argument("--pixels", default="fashion-mnist", help="data set of gray images")
    parser.add_argument("--recall", type=float, action="append", help="target; may be repeated")
    given = parser.parse_args()
    _, database, metric = embedded(*given.embeddings) if given.embeddings else pixels(given.pixels)
    recalls = given.recall or RECALLS
    document = {"machine": machine.describe(), "targets": compare(database, metric, recalls)}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

"""Prepare a test of pairs: choose the images to test, and those that set the threshold."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.contracts import PairScorer
from retrieval.errors import Mismatch
from retrieval.pairs.comparing import improbability
from retrieval.pairs.verification import (
    TRAINED,
    CalibrationTest,
    Procedure,
    check_apart,
    class_groups,
    split,
    verify,
)
from retrieval.quality.labelled import Labelled
from retrieval.quality.provenance import Provenance, known_provenance, seen
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.sets.manifest import EncoderFacts

MAX_SCORED_IMAGES = 500  # a scorer's maps of an image take 2 MB

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class PairTest:
    """Images to draw pairs from, and the procedure to judge the pairs.

    tested: images of the test pairs.
    validation: images of the pairs that set the threshold.
    groups: classes that the encoder was trained on, and classes that it was not trained on.
    judge: the encoder or the scorer.
    scorer: None to judge by the distance of embeddings.
    source: name of the validation images' source.
    """

    tested: Labelled
    validation: Labelled
    procedure: Procedure
    groups: Mapping[str, Collection[str]]
    judge: EncoderFacts
    scorer: PairScorer | None
    source: str

    @property
    def measured(self) -> str:
        """Return the name of the measured quantity: a distance, or a scorer's probability."""
        if self.scorer is None:
            return f"{self.procedure.metric} distance"
        return f"1 - p of {self.scorer.name}"

    def run(self, warn: Warn) -> CalibrationTest:
        """Return the result of `verify`, and warn if its accuracy is overestimated."""
        outcome = verify(
            self.tested,
            self.validation,
            self.procedure,
            self.judge.fingerprint,
            self.groups,
            None if self.scorer is None else improbability(self.scorer),
            self.source,
        )
        classes = {*outcome.calibration.fitted_to.classes}
        if not classes.issubset(self.groups.get(TRAINED, classes)):
            warn(
                "the validation images have fewer than two classes that the encoder was trained "
                "on: the threshold comes from pairs of held-out classes, so that the accuracy over "
                "these is overestimated"
            )
        return outcome


def prepare_pair_test(
    test: Embeddings,
    validation: Embeddings | None,
    procedure: Procedure,
    *,
    scorer: PairScorer | None = None,
    classes: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
    warn: Warn,
) -> PairTest:
    """Return a test on pairs of the embeddings' images.

    validation: None to use a fifth of the test images instead.
    classes: classes of the test pairs; None for all.
    held_out: classes that the encoder was not trained on; None for those that its card does not
        name.

    Raises UnknownName for a class without images; Mismatch if the sets are of two encoders or share
    images, or the encoder was trained on all images; BadInput if a set has too few images.
    """
    judge = test.facts.encoder if scorer is None else EncoderFacts.of(scorer)
    trained = known_provenance(judge, warn)
    images = Labelled.of(test)
    images.check_classes([*(classes or ()), *(held_out or ())])
    tested, validating = _split(test, images, validation, trained, procedure.seed, warn)
    if classes is not None:
        tested = tested.of_classes(classes)
    groups = class_groups({*images.classes(), *validating.classes()}, trained, held_out)
    if scorer is not None:
        tested = tested.sample(MAX_SCORED_IMAGES, procedure.seed)
        validating = validating.sample(MAX_SCORED_IMAGES, procedure.seed)
    counts = tested.rows_of_classes()
    for name in classes or images.classes():
        if counts[name] < 2:
            some = "a single image" if counts[name] else "no image"
            warn(f"class '{name}' has {some} to test, so that it has no pair that is alike")
    source = (validation or test).facts.source.name
    return PairTest(tested, validating, procedure, groups, judge, scorer, source)


def _split(
    test: Embeddings,
    images: Labelled,
    validation: Embeddings | None,
    trained: Provenance | None,
    seed: int,
    warn: Warn,
) -> tuple[Labelled, Labelled]:
    """Return the images to test, and other images for validation.

    The encoder was not trained on the validation images.
    """
    facts = test.facts
    known = seen(images, facts.source, trained)
    if known.any():
        count = int(known.sum())
        warn(
            f"the encoder was trained on {count:,} image{'' if count == 1 else 's'} of "
            f"{test.folder}, so that the results are too good; give images that it was not trained "
            "on"
        )
    if validation is None:
        tested, validating = split(images, known, seed)
    else:
        others = validation.facts
        where = str(test.folder), str(validation.folder)
        check_same_encoder(facts.encoder, others.encoder, *where)
        given = Labelled.of(validation)
        new = ~seen(given, others.source, trained)
        tested, validating = images, given.take(np.flatnonzero(new))
        check_apart(tested, validating, facts.source, others.source)
    if not len(validating):
        raise Mismatch(
            f"no image of {(validation or test).folder} is left for validation: the encoder was "
            "trained on all of them, or each class has fewer than 4; give others with --validation"
        )
    return tested, validating

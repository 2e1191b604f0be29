"""Label the images of a set by words: each gets the class whose words are nearest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contracts import Json, Metric, Prompts
from retrieval.embedding.embed import Embedder
from retrieval.embedding.query import checked_texts
from retrieval.errors import BadInput
from retrieval.quality.labelled import Labelled
from retrieval.quality.words.texts import in_templates, units
from retrieval.quality.words.zero_shot import (
    MIN_FITTED,
    SOMETHING,
    Classes,
    NamedClasses,
    Temperature,
    assigned,
    fitted_temperature,
    place_of_nothing,
    probabilities,
)
from retrieval.storage.names import nfc
from retrieval.storage.sets.assigned import assign_labels
from retrieval.storage.sets.compatible import check_same_encoder
from retrieval.storage.sets.embeddings import Embeddings


@dataclass(frozen=True, slots=True, eq=False)
class Labeling:
    """The classes given to the images of a set.

    names: of the classes. classes: (n,), -1 for an image whose probability was too small.
    probabilities: (n,), of the class. agreement: share of the images with a label of their own
    among the names that got that label; None without such images. compared: their number.
    """

    names: tuple[str, ...]
    prompts: Prompts
    classes: Classes
    probabilities: NDArray[np.float64]
    temperature: Temperature
    agreement: float | None
    compared: int

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each class."""
        found = Counter(self.classes.tolist())
        return {name: found[place] for place, name in enumerate(self.names)}

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr label --json` prints."""
        return {
            "with": [*self.names],
            "templates": [*self.prompts.templates],
            "images": len(self.classes),
            "labelled": int((self.classes >= 0).sum()),
            "counts": dict(self.counts),
            "calibration": self.temperature.to_json(),
            "agreement": self.agreement,
            "compared": self.compared,
        }


def label_by_words(
    embeddings: Embeddings,
    names: Sequence[str],
    embedder: Embedder,
    calibrated_on: Embeddings | None = None,
    least: float = 0.0,
    templates: Sequence[str] = (),
) -> Labeling:
    """Label the images, and write labels and probabilities beside the embeddings.

    names: of the classes; one of `zero_shot.NOTHING` is for images that show none of the others.
    embedder: of the set's encoder. calibrated_on: embeddings with labels that the probabilities are
    fitted to; None for the set itself, if enough of its images have labels among the names.
    least: probability below which an image gets no label. templates: sentences with `{}`; none for
    those of the encoder.

    Raises BadInput for fewer than two names or one that stands twice, for templates without `{}`,
    for an encoder that takes no text, and for too few labels in `calibrated_on`.
    """
    prompts = _prompts(embedder.prompts, templates)
    classes = named_classes(names, embedder, prompts)
    own = replace(embeddings, manifest=replace(embeddings.manifest, assigned=None))
    images = Labelled.of(own)
    logits = classes.logits(units(images.vectors, Metric.COSINE))
    truth = _truth(images, classes)
    temperature = Temperature()
    if calibrated_on is not None:
        temperature = _fitted_elsewhere(calibrated_on, embeddings, classes)
    elif (truth >= 0).sum() >= MIN_FITTED and len(np.unique(truth[truth >= 0])) > 1:
        temperature = fitted_temperature(logits[truth >= 0], truth[truth >= 0])
    found = assigned(logits)
    likely = probabilities(logits, temperature.value)[np.arange(len(found)), found]
    compared = truth >= 0
    agreement = float((found == truth)[compared].mean()) if compared.any() else None
    labeling = Labeling(
        classes.names,
        prompts,
        np.where(likely >= least, found, -1),
        likely,
        temperature,
        agreement,
        int(compared.sum()),
    )
    _write(embeddings, labeling)
    return labeling


def named_classes(names: Sequence[str], embedder: Embedder, prompts: Prompts) -> NamedClasses:
    """Return the classes with their vectors. Raises the errors of `label_by_words`."""
    given = [nfc(name.strip()) for name in checked_texts(names)]
    if len(given) < 2:
        raise BadInput(f"{len(given)} class is nothing to choose from; give two or more")
    for name, count in Counter(given).items():
        if count > 1:
            raise BadInput(f"the class '{name}' is given twice; leave one out")
    nothing = place_of_nothing(given)
    words = [SOMETHING if place == nothing else name for place, name in enumerate(given)]
    vectors = in_templates(words, prompts, embedder.embed_texts, Metric.COSINE)
    return NamedClasses(tuple(given), vectors, prompts, nothing)


def _prompts(prompts: Prompts, templates: Sequence[str]) -> Prompts:
    """Return the prompts with these templates, if there are any. Raises BadInput."""
    for template in templates:
        if "{}" not in template:
            raise BadInput(f"the template '{template}' has no {{}} for the name; add it")
    return replace(prompts, templates=tuple(templates)) if templates else prompts


def _truth(images: Labelled, classes: NamedClasses) -> Classes:
    """Return the class (n,) of each image's own label; -1 if it is not among them.

    With a class of nothing, other labels belong to it.
    """
    numbers = images.numbers(classes.names)
    if classes.nothing >= 0:
        known = np.array([label is not None for label in images.labels], bool)
        if (numbers >= 0).any():  # else the labels are of another kind, such as years
            numbers[known & (numbers < 0)] = classes.nothing
    return numbers


def _fitted_elsewhere(
    labelled: Embeddings, embeddings: Embeddings, classes: NamedClasses
) -> Temperature:
    check_same_encoder(
        labelled.facts.encoder,
        embeddings.facts.encoder,
        str(labelled.folder),
        str(embeddings.folder),
    )
    images = Labelled.of(labelled)
    truth = _truth(images, classes)
    known = truth >= 0
    if known.sum() < MIN_FITTED:
        raise BadInput(
            f"{known.sum():,} of {len(images):,} images of {labelled.folder} have a label among "
            f"{', '.join(classes.names)}; give embeddings with at least {MIN_FITTED}"
        )
    vectors = units(images.vectors[known], Metric.COSINE)
    return fitted_temperature(classes.logits(vectors), truth[known])


def _write(embeddings: Embeddings, labeling: Labeling) -> None:
    names = np.array([*labeling.names, None], object)
    labels = pa.array(names[labeling.classes], pa.string())
    about = cast(
        "dict[str, Json]",
        {
            "with": [*labeling.names],
            "templates": [*labeling.prompts.templates],
            "temperature": asdict(labeling.temperature),
            "encoder": embeddings.facts.encoder.name,
        },
    )
    likely = pa.array(labeling.probabilities, pa.float64(), mask=labeling.classes < 0)
    assign_labels(embeddings.folder, embeddings.keys(), labels, likely, about)

"""`retr eval --texts`: text queries with labels, or captions of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import Output
from cli.sides import AskedIndex, evaluated_through, warn_of_assigned
from cli.tables import print_evaluation

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.contracts import Metric
    from retrieval.embedding.embed import Embedder
    from retrieval.quality.evaluation import Evaluation
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.words.captions import CaptionRecall
    from retrieval.quality.words.texts import TextQueries
    from retrieval.quality.words.zero_shot import Accuracy
    from retrieval.storage.sets.embeddings import Embeddings


@dataclass(frozen=True, slots=True)
class WordResult:
    """The evaluation of a file of texts.

    result: Evaluation of texts with labels, or CaptionRecall. zero_shot: of texts with labels.
    """

    result: "Evaluation | CaptionRecall"
    database: "Labelled"
    zero_shot: "Accuracy | None"
    facts: "dict[str, JsonValue]"

    def to_json(self) -> "dict[str, JsonValue]":
        """Return the document that `retr eval --texts --json` prints."""
        zero_shot = None if self.zero_shot is None else self.zero_shot.to_json()
        return self.result.to_json() | self.facts | {"zero_shot": zero_shot}


def evaluate_texts(
    output: Output,
    file: Path,
    searched: "Embeddings",
    metric: "Metric | None",
    ks: Sequence[int],
    depth: int,
    through: AskedIndex | None = None,
    in_templates: bool = False,
    device: str = "auto",
) -> WordResult:
    """Embed the texts of the file by the encoder of the database, and evaluate them.

    Raises BadInput for a file that is not as `TextQueries.read` wants it, and for an encoder that
    takes no text.
    """
    from retrieval.embedding.embed import Embedder
    from retrieval.quality.evaluation import evaluate
    from retrieval.quality.labelled import Labelled
    from retrieval.quality.provenance import ids_within
    from retrieval.quality.words.captions import caption_recall
    from retrieval.quality.words.texts import LABEL, TextQueries
    from retrieval.quality.words.zero_shot import accuracy

    asked = TextQueries.read(file)
    warn_of_assigned(output, searched)
    embedder = Embedder(searched.facts.encoder, device, owner=str(searched.folder))
    chosen = metric or searched.facts.metric
    vectors = _vectors(output, asked, embedder, chosen, in_templates)
    database = Labelled.of(searched)
    facts: dict[str, JsonValue] = {
        "texts": str(file),
        "database": str(searched.folder),
        "encoder": searched.facts.encoder.name,
        "in_templates": in_templates,
        "protocol": None,
    }
    if asked.by != LABEL:
        if through is not None:
            _refuse_index()
        ids = ids_within(database, searched.facts.source)
        captions = caption_recall(asked, vectors, database, chosen, ks, depth, ids)
        return WordResult(captions, database, None, facts)
    queries = asked.labelled(vectors)
    if through is None:
        result = evaluate(queries, database, chosen, ks, depth)
    else:
        result = evaluated_through(through, searched, queries, database, ks, depth)
    return WordResult(result, database, accuracy(queries, database, result.metric), facts)


def _vectors(
    output: Output,
    asked: "TextQueries",
    embedder: "Embedder",
    metric: "Metric",
    in_templates: bool,
) -> Any:
    from retrieval.quality.words.texts import in_templates as templated

    if in_templates:
        prompts = embedder.prompts
        return templated(asked.texts, prompts, embedder.embed_texts, metric)
    return embedder.embed_texts(asked.texts, output.warn)


def _refuse_index() -> None:
    from retrieval.errors import BadInput

    raise BadInput(
        "--index evaluates texts with labels; captions are ranked in both directions, and an index "
        "has only one; leave --index out"
    )


def print_words(output: Output, of: WordResult, file: Path) -> None:
    """Print the measures with their intervals and definitions."""
    from retrieval.quality.metrics import DEFINITIONS
    from retrieval.quality.words.captions import CaptionRecall

    if isinstance(of.result, CaptionRecall):
        _print_captions(output, of.result, file)
        return
    print_evaluation(output, of.result)
    for name in of.result.defined:
        output.say(DEFINITIONS[name])
    if of.zero_shot is not None:
        low, high = of.zero_shot.interval
        output.say(
            f"\nzero-shot accuracy {of.zero_shot.value:.4f} ({low:.4f} to {high:.4f}), "
            f"{of.zero_shot.images:,} images, {of.zero_shot.classes} classes"
        )
        output.say(DEFINITIONS["zero_shot"])


def _print_captions(output: Output, recall: "CaptionRecall", file: Path) -> None:
    from retrieval.quality.metrics import DEFINITIONS

    output.say(f"texts of {file} against {recall.database:,} images, {recall.metric}")
    if recall.left_out:
        output.say(f"{recall.left_out:,} texts have no image in the database, and were left out")
    output.say()
    lines = []
    for name, of in (
        ("text → image", recall.text_to_image),
        ("image → text", recall.image_to_text),
    ):
        lines.append((name, *(f"{value:.4f}" for value in of.recall_at.values()), _rank(of)))
        half = [(high - low) / 2 for low, high in of.intervals.values()]
        lines.append(("  ±", *(f"{value:.4f}" for value in half), ""))
    ks = [f"R@{k}" for k in recall.text_to_image.recall_at]
    output.table(("", *ks, "median rank"), lines)
    output.say()
    output.say(DEFINITIONS["caption_recall_at"])


def _rank(of: Any) -> str:
    return f"{of.median_rank:g} of {of.ranked:,}"

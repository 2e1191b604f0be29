"""The measures of an evaluation as text, for tables on a terminal and in a report."""

from retrieval.quality.evaluation import Evaluation

OVERALL_NAMES = {
    "map": "mAP",
    "r_precision": "R-precision",
    "mrr": "MRR",
    "knn_accuracy": "kNN accuracy",
}
"""Names of the measures of full rankings, by column."""

AT_K_NAMES = {
    "precision_at": "P@k",
    "recall_at": "recall@k",
    "map_at": "mAP@k",
    "ndcg_at": "nDCG@k",
}
"""Names of the measures of the first k items, by measure."""

NO_VALUE = "–"

Table = tuple[list[str], list[list[str]]]
"""A header, and lines with the same number of cells."""


def overall(evaluation: Evaluation) -> dict[str, str]:
    """Return the measures of full rankings that have a value, by name, with their margins."""
    return {
        name: with_margin(evaluation.means[column], evaluation.margin(column))
        for column, name in OVERALL_NAMES.items()
        if column in evaluation.means
    }


def table_at_k(evaluation: Evaluation) -> Table:
    """Return the measures of the first k with their margins: a line for each measure."""
    return (
        ["k", *(f"{k:,}" for k in evaluation.ks)],
        [
            [
                name,
                *(
                    with_margin(value, evaluation.margin(measure, k))
                    for k, value in getattr(evaluation, measure).items()
                ),
            ]
            for measure, name in AT_K_NAMES.items()
        ],
    )


def table_of_classes(evaluation: Evaluation) -> Table:
    """Return queries, mAP and precision of each class."""
    return (
        ["class", "queries", "mAP", *(f"P@{k}" for k in evaluation.ks)],
        [
            [
                label,
                f"{of.queries:,}",
                number(of.map),
                *(f"{of.precision_at[k]:.4f}" for k in evaluation.ks),
            ]
            for label, of in evaluation.per_class.items()
        ],
    )


def left_out(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each reason for which queries were left out."""
    counts = {
        "queries have no label": evaluation.unlabelled,
        "queries have nothing relevant to find": evaluation.without_relevant,
    }
    return [f"{count:,} {why}, and were left out" for why, count in counts.items() if count]


def number(value: float | None) -> str:
    """Return the value with four decimals."""
    return NO_VALUE if value is None else f"{value:.4f}"


def with_margin(value: float, margin: float | None) -> str:
    """Return the value and half of its interval's width: `0.8123 ± 0.0045`."""
    return f"{value:.4f}" + ("" if margin is None else f" ± {margin:.4f}")

"""Files of evaluations: tables of queries to compare later, and runs and judgments for other tools.

Runs and judgments ("qrels") have the format of TREC, which trec_eval and ranx read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.contracts import Json
from retrieval.errors import BadData, BadInput, Mismatch
from retrieval.quality.evaluation import Evaluation
from retrieval.quality.labelled import Labelled
from retrieval.quality.significance import Values, bootstrap, permutation_test
from retrieval.quality.words.captions import CaptionRecall
from retrieval.storage.files import check_format, made_folder, write_whole
from retrieval.storage.tables import read_table, write_table

QUERIES = "retr-queries"
VERSION = 1

_FACTS = b"retr"
_KEPT = ("id", "label")


@dataclass(frozen=True, slots=True, eq=False)
class QueryTable:
    """Measures (q, columns) of each query, read from a file, and facts about the evaluation."""

    ids: list[str]
    columns: list[str]
    values: Values
    facts: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a mean between another evaluation (`there`) and this one (`here`).

    Both means are over the queries that are in both evaluations.
    interval: the 95% confidence interval of the difference, by bootstrap.
    p: the probability by the paired permutation test.
    """

    there: float
    here: float
    interval: tuple[float, float]
    p: float

    def to_json(self) -> dict[str, Json]:
        """Return the document that `retr eval --json` prints."""
        return {
            "there": self.there,
            "here": self.here,
            "difference": self.here - self.there,
            "interval": list(self.interval),
            "p": self.p,
        }


def write_queries(
    path: Path, evaluation: Evaluation | CaptionRecall, facts: Mapping[str, Json]
) -> None:
    """Write the measures of each query as Parquet: id, label and a column for each measure.

    facts: facts about the evaluation, kept in the file.
    """
    of = evaluation.per_query
    columns = {"id": of.ids, "label": of.labels}
    table = pa.table(
        columns | {name: of.values[:, i] for i, name in enumerate(of.columns)},
        metadata={_FACTS: json.dumps({"format": QUERIES, "version": VERSION, **facts})},
    )
    made_folder(path.parent)
    write_table(path, table)


def read_queries(path: Path) -> QueryTable:
    """Read a table that `write_queries` wrote.

    Raises BadInput if the file does not exist, BadData if it is another table.
    """
    if not path.is_file():
        raise BadInput(f"{path} not found; write it with 'retr eval --save {path}'")
    try:
        table = read_table(path.read_bytes())
        facts = dict(json.loads((table.schema.metadata or {}).get(_FACTS, b"{}")))
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        raise BadData(f"cannot read {path} ({error}); write it again") from None
    check_format(facts, QUERIES, VERSION, path)
    columns = [name for name in table.column_names if name not in _KEPT]
    values = np.column_stack([table[name].to_numpy() for name in columns])
    return QueryTable(table["id"].to_pylist(), columns, values, facts)


def compare_evaluations(
    evaluation: Evaluation | CaptionRecall, other: QueryTable, protocol: str | None
) -> dict[str, Difference]:
    """Return the difference of each measure that both evaluations have, by its column.

    Means are over the queries that both have. protocol: the protocol of `evaluation`. Raises
    Mismatch if `other` has another protocol, or if no query is in both.
    """
    there = other.facts.get("protocol")
    if there != protocol:
        raise Mismatch(
            f"the other evaluation has protocol {there or 'none'}, and this one "
            f"{protocol or 'none'}; evaluate both with the same protocol"
        )
    of = evaluation.per_query
    rows = {name: row for row, name in enumerate(other.ids)}
    both = [(i, rows[name]) for i, name in enumerate(of.ids) if name in rows]
    if not both:
        raise Mismatch("no query is in both evaluations; evaluate both with the same queries")
    here_rows, there_rows = np.array(both).T
    found = {}
    for i, name in enumerate(of.columns):
        if name not in other.columns:
            continue
        here = of.values[here_rows, i]
        before = other.values[there_rows, other.columns.index(name)]
        low, high = bootstrap((here - before)[:, None])[:, 0].tolist()
        found[name] = Difference(
            float(before.mean()), float(here.mean()), (low, high), permutation_test(here - before)
        )
    return found


def write_run(
    path: Path, evaluation: Evaluation | CaptionRecall, database: Labelled, tag: str
) -> None:
    """Write the rows that the evaluation kept, nearest first, as `query Q0 item rank score tag`.

    Scores decrease by 1 from rank to rank, for readers that sort by score. White space in ids is
    percent-encoded, as %20.
    """
    of = evaluation.per_query
    names = [_token(name) for name in database.ids]
    depth = of.rows.shape[1]

    def lines() -> Iterator[str]:
        for query, rows in zip(of.ids, of.rows, strict=True):
            asked = _token(query)
            for rank, row in enumerate(rows[rows >= 0].tolist(), 1):
                yield f"{asked} Q0 {names[row]} {rank} {depth + 1 - rank} {_token(tag)}\n"

    _write_lines(path, lines())


def write_qrels(path: Path, evaluation: Evaluation | CaptionRecall, database: Labelled) -> None:
    """Write all items relevant to each query, without the query itself, as `query 0 item 1`.

    To a caption, its image is relevant.
    """
    of = evaluation.per_query
    if isinstance(evaluation, CaptionRecall):
        both = zip(of.ids, of.labels, strict=True)
        _write_lines(path, (f"{_token(text)} 0 {_token(image)} 1\n" for text, image in both))
        return
    names = [_token(name) for name in database.ids]
    of_label: dict[str, list[int]] = {}
    for row, label in enumerate(database.labels):
        if label is not None:
            of_label.setdefault(label, []).append(row)

    def lines() -> Iterator[str]:
        for query, label, own in zip(of.ids, of.labels, of.own.tolist(), strict=True):
            asked = _token(query)
            # One string for each query is fast: a query may have thousands of relevant items.
            yield "".join(f"{asked} 0 {names[row]} 1\n" for row in of_label[label] if row != own)

    _write_lines(path, lines())


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    made_folder(path.parent)
    write_whole(path, write)


def _token(text: str) -> str:
    """Return the text with white space and % percent-encoded."""
    return re.sub(r"[\s%]", lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), text)

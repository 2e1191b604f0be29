"""Build an index in segments: each from a group of shards, in parallel, and searched as one index.

A segment is an index folder inside the folder of the whole index. The `index.json` of the whole
index names the segments (as `parts`), with the sha256 of their `index.json`, and is written last.

The name of a segment depends on its shards and options. So the next build reuses the complete
segments of an interrupted build, and a build of other shards does not change the old segments
before it is complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context

import pyarrow as pa

from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Json, Metric
from retrieval.errors import BadData, BadInput
from retrieval.index.build import build_index, check_target, checked_indexer, publish_index
from retrieval.index.folder import (
    INDEX,
    RECALL,
    SEGMENT_PREFIX,
    IndexFacts,
    Segment,
    options_of,
)
from retrieval.index.row_tables import read_rows
from retrieval.runtime.threads import limit_threads, usable_cores
from retrieval.storage.files import locked, made_folder, sha256_of
from retrieval.storage.places import Place, place_of
from retrieval.storage.sets.compatible import with_unique_ids
from retrieval.storage.sets.embeddings import Embeddings, open_embeddings
from retrieval.storage.tables import check_unique


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """Instructions for a worker to build a segment.

    stretches: for each set, its folder, the number of the first shard, and the number of shards.
    prefixes: of the ids of each set; empty if there are none.
    """

    stretches: tuple[tuple[str, int, int], ...]
    backend: str
    metric: Metric
    options: Mapping[str, Json]
    folder: str
    prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        resolve_choices(self)

    def sets(self) -> list[Embeddings]:
        """Open the embeddings that the segment is built from."""
        sets = [
            open_embeddings(place_of(place)).some(first, count)
            for place, first, count in self.stretches
        ]
        prefixes = self.prefixes or [""] * len(sets)
        return [replace(each, prefix=of) for each, of in zip(sets, prefixes, strict=True)]


SegmentBuilder = Callable[
    [Callable[[SegmentTask], IndexFacts], Sequence[SegmentTask]], Iterator[tuple[int, IndexFacts]]
]
"""Function that runs a build of each task in parallel, and yields (number of the task, result).

Results are yielded as they complete. Raises the errors of the build."""


def build_segments(
    sets: Sequence[Embeddings],
    backend: str,
    folder: Place,
    parts: int,
    metric: Metric | str | None = None,
    options: Mapping[str, object] | None = None,
    engine: SegmentBuilder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IndexFacts:
    """Build the index of all `sets` in segments, in `folder`; return its facts.

    parts: number of segments. Each has consecutive shards, and about as many rows as the others.
        There are fewer segments where there are fewer shards.
    engine: builds the segments; by default a process for each core. All of its workers must see the
        folder and the sets.
    progress: called with the number of complete segments, and of all segments.

    Raises the errors of `build_index`, and BadInput for less than one segment.
    """
    metric = None if metric is None else choice(Metric, metric)
    if parts < 1:
        raise BadInput(f"the number of parts is {parts}; give 1 or more")
    indexer = checked_indexer(sets, backend, metric, options)
    sets = with_unique_ids(sets)
    check_target(folder)
    made_folder(folder)
    with locked(folder):
        tasks = _tasks(sets, backend, indexer.metric, options_of(indexer), folder, parts)
        whole = {
            task.folder: facts for task in tasks if (facts := _complete_facts(task)) is not None
        }
        progress(len(whole), len(tasks))
        waiting = [task for task in tasks if task.folder not in whole]
        for number, facts in (engine or processes)(_build, waiting) if waiting else ():
            whole[waiting[number].folder] = facts
            progress(len(whole), len(tasks))
        built = [(task, whole[task.folder]) for task in tasks]
        _check_ids(built, " and ".join(str(each.folder) for each in sets))
        return publish_index(folder, _joined_facts(sets, built))


def add_segment(folder: Place, facts: IndexFacts, sets: Sequence[Embeddings]) -> IndexFacts:
    """Add the embeddings of all `sets` to the index in `folder` as a segment; return its facts.

    The caller holds the folder's lock, and has checked that sets and index have the same encoder.
    """
    task = _tasks(sets, facts.backend, facts.metric, facts.options, folder, 1)[0]
    added = _complete_facts(task) or _build(task)
    part = _segment_of(task, added)
    if any(part.folder == other.folder for other in facts.parts):
        raise BadData(f"{sets[0].folder} is already in {folder}; leave it out")
    return publish_index(
        folder,
        replace(
            facts,
            rows=facts.rows + added.rows,
            details={**facts.details, **_lowest_recall([facts, added])},
            embeddings=(*facts.embeddings, *(each.identity for each in sets)),
            parts=(*facts.parts, part),
        ),
    )


def processes(
    build: Callable[[SegmentTask], IndexFacts], tasks: Sequence[SegmentTask]
) -> Iterator[tuple[int, IndexFacts]]:
    """Build in one process for each core, or in fewer processes with more threads each."""
    cores = usable_cores()
    workers = min(len(tasks), cores)
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), limit_threads, (max(1, cores // workers),)
    )
    try:
        coming = {pool.submit(build, task): number for number, task in enumerate(tasks)}
        for each in as_completed(coming):
            yield coming[each], each.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(
    sets: Sequence[Embeddings],
    backend: str,
    metric: Metric,
    options: Mapping[str, Json],
    folder: Place,
    parts: int,
) -> list[SegmentTask]:
    """Return the tasks of all segments. Each segment has consecutive shards."""
    shards = [
        (number, shard, size.rows)
        for number, each in enumerate(sets)
        for shard, size in enumerate(each.manifest.shards)
    ]
    common = {
        "sets": [each.identity for each in sets],
        "backend": backend,
        "metric": metric,
        "options": dict(options),
    }
    tasks = []
    for group in even_groups([rows for _, _, rows in shards], parts):
        stretches: dict[int, list[int]] = {}
        for number, shard, _ in shards[group]:
            stretches.setdefault(number, []).append(shard)
        facts = {**common, "shards": stretches}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        tasks.append(
            SegmentTask(
                tuple(
                    (str(sets[number].folder.resolve()), of_set[0], len(of_set))
                    for number, of_set in stretches.items()
                ),
                backend,
                metric,
                dict(options),
                str((folder / f"{SEGMENT_PREFIX}{key}").resolve()),
                tuple(sets[number].prefix for number in stretches),
            )
        )
    return tasks


def even_groups(rows: Sequence[int], parts: int) -> list[slice]:
    """Return at most `parts` slices of shards, with about the same number of rows, none empty.

    rows: the number of rows of each shard; or another size of things that lie in a row.
    """
    total = sum(rows)
    groups: list[slice] = []
    start = done = 0
    for end, count in enumerate(rows, start=1):
        done += count
        # A group ends with the shard that takes it to its share of all rows.
        if done * parts >= total * (len(groups) + 1) and done > sum(rows[:start]):
            groups.append(slice(start, end))
            start = end
    return groups


def _build(task: SegmentTask) -> IndexFacts:
    return build_index(
        task.sets(), task.backend, place_of(task.folder), task.metric, {**task.options}
    )


def _complete_facts(task: SegmentTask) -> IndexFacts | None:
    """Return the facts of the segment if it is complete, else None."""
    with suppress(BadInput):
        facts = IndexFacts.read(place_of(task.folder))
        if facts.embeddings == tuple(each.identity for each in task.sets()):
            return facts
    return None


def _joined_facts(
    sets: Sequence[Embeddings], built: Sequence[tuple[SegmentTask, IndexFacts]]
) -> IndexFacts:
    first = built[0][1]
    facts_of_parts = [facts for _, facts in built]
    return replace(
        first,
        options=_most_thorough(facts_of_parts),
        rows=sum(facts.rows for _, facts in built),
        embeddings=tuple(each.identity for each in sets),
        details={"parts": len(built), **first.details, **_lowest_recall(facts_of_parts)},
        files={},
        at="",
        parts=tuple(_segment_of(task, facts) for task, facts in built),
    )


def _most_thorough(parts: Sequence[IndexFacts]) -> dict[str, Json]:
    """Return the options of the segments; for numbers that differ, the largest."""
    options = dict(parts[0].options)
    for name, value in options.items():
        others = [part.options[name] for part in parts]
        if isinstance(value, int) and others != [value] * len(others):
            options[name] = max(other for other in others if isinstance(other, int))
    return options


def _lowest_recall(parts: Sequence[IndexFacts]) -> dict[str, Json]:
    """Return the lowest measured recall of a segment; empty if none was measured."""
    measured = [part.details.get(RECALL) for part in parts]
    known = [recall for recall in measured if isinstance(recall, float)]
    return {RECALL: min(known)} if known else {}


def _segment_of(task: SegmentTask, facts: IndexFacts) -> Segment:
    place = place_of(task.folder)
    return Segment(place.name, facts.rows, sha256_of(place / INDEX))


def _check_ids(built: Sequence[tuple[SegmentTask, IndexFacts]], where: str) -> None:
    """Raise BadData if an id is in two segments.

    This reads the small files of ids, not the large files of embeddings.
    """
    columns = [read_rows(place_of(task.folder) / facts.at)["id"] for task, facts in built]
    check_unique(pa.chunked_array([c for column in columns for c in column.chunks]), where)

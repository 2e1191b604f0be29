"""Add rows to an existing index, and delete rows from it."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.contracts import (
    Blocks,
    Growing,
    Index,
    Indexer,
    Readable,
    Settling,
    Shrinking,
    Streaming,
    Tunable,
    Upserting,
    Vectors,
)
from retrieval.errors import BadInput, Mismatch
from retrieval.index.build import partial_folder, replace_files, write_index
from retrieval.index.folder import (
    IndexFacts,
    OpenIndex,
    folder_of,
    local_files,
    open_index,
    options_of,
)
from retrieval.index.renumbering import Renumbered, plain
from retrieval.index.row_tables import CONTENTS, ROWS, RowTables, read_contents, read_rows
from retrieval.index.segments import segments_of
from retrieval.registry import make_indexer
from retrieval.storage.files import locked, sha256_of
from retrieval.storage.places import Place, RemotePath
from retrieval.storage.roots import roots_of, with_root
from retrieval.storage.sets.compatible import (
    check_same_encoder,
    common_facts,
    read_all,
    source_names,
    with_unique_ids,
)
from retrieval.storage.sets.embeddings import Embeddings
from retrieval.storage.tables import check_unique, write_table
from retrieval.where.selection import select_rows


def add_rows(folder: Place, sets: Sequence[Embeddings]) -> IndexFacts:
    """Add the embeddings of all `sets` to the index in the folder; return its facts.

    The new index replaces the old one once it is complete. Nothing changes if an earlier call added
    the sets.

    Raises the errors of `open_index`, Mismatch for embeddings of another encoder, BadData for a
    duplicate id, BadInput for a backend that cannot add rows, Busy if another process writes there.
    """
    IndexFacts.read(folder)  # raise an error before a lock file is written into another folder
    with locked(folder), partial_folder(folder) as partial:
        opened = open_index(folder)
        facts, index = opened.facts, opened.index
        encoder = common_facts(sets)
        check_same_encoder(facts.encoder, encoder, str(folder), str(sets[0].folder))
        if sets[0].facts.dim != facts.dim:
            raise Mismatch(
                f"{sets[0].folder} has {sets[0].facts.dim} dimensions, and {folder} has "
                f"{facts.dim}; encode one of them again"
            )
        if not facts.parts and not isinstance(plain(index), Growing | Upserting):
            raise BadInput(f"backend {facts.backend} cannot add rows; index all rows again")
        if _contains_all(opened, sets):
            return facts
        sets = _with_new_ids(opened.rows, sets)
        if facts.parts:
            from retrieval.index.build_segments import add_segment

            check_unique(
                pa.concat_tables([opened.rows, *(each.rows() for each in sets)])["id"],
                " and ".join([str(folder), *(str(each.folder) for each in sets)]),
            )
            return add_segment(folder, facts, sets)
        rows, vectors = read_all(sets)
        if len(rows) == 0:
            raise BadInput("there are no embeddings to add; encode some images first")
        tables = RowTables.of(rows, sets).below(opened.rows, opened.columns)
        names = " and ".join(str(each.folder) for each in sets)
        check_unique(tables.rows["id"], f"{folder} and {names}")
        if isinstance(index, Upserting):
            old = np.concatenate([np.arange(len(index)), np.full(len(rows), -1)])
            index = index.upsert(tables.all_columns, old, vectors)
        else:
            cast(Growing, index).add(vectors)
        blocks = index.stored() if isinstance(index, Readable) else None
        facts = replace(
            facts,
            embeddings=(*facts.embeddings, *(each.identity for each in sets)),
            added=facts.added + len(vectors),
        )
        return write_index(partial, folder, index, tables, facts, blocks)


def _with_new_ids(rows: pa.Table, sets: Sequence[Embeddings]) -> list[Embeddings]:
    """Return the sets with ids that the index does not have, as `with_unique_ids` makes them.

    Ids of a source that is in the index already stay as they are.
    """
    known = {*roots_of(rows["id"].to_pylist(), rows["path"].to_pylist())}
    there = rows["id"].combine_chunks()
    found = with_unique_ids(sets)
    return [
        replace(each, prefix=f"{name}/")
        if each.facts.source.root not in (None, *known)
        and not each.prefix
        and pc.any(pc.is_in(each.ids(), value_set=there)).as_py()
        else each
        for each, name in zip(found, source_names(sets), strict=True)
    ]


def _contains_all(opened: OpenIndex, sets: Sequence[Embeddings]) -> bool:
    """Return whether the index has all rows of these sets."""
    if not {each.identity for each in sets} <= set(opened.facts.embeddings):
        return False
    ids = pa.concat_tables([each.rows() for each in sets])["id"]
    return bool(pc.all(pc.is_in(ids, value_set=opened.rows["id"].combine_chunks())).as_py())


def delete_rows(folder: Place, where: str) -> IndexFacts:
    """Delete the rows that match a filter from the index in the folder; return its facts.

    where: a filter such as `label=cat` or `id=a.png,b.png`; see `select_rows`. The new index
    replaces the old one once it is complete.

    Raises the errors of `open_index` and `select_rows`, BadInput for a filter that matches all
    rows, Busy if another process writes there.
    """
    IndexFacts.read(folder)
    with locked(folder), partial_folder(folder) as partial:
        opened = open_index(folder)
        facts, index = opened.facts, opened.index
        if facts.parts:
            raise BadInput("an index in parts cannot delete rows; index again without them")
        gone = select_rows(opened.rows, where, opened.columns).mask
        if gone.all():
            raise BadInput(
                f"'{where}' matches all {len(gone):,} rows; delete the folder {folder}, or give a "
                "filter that matches fewer rows"
            )
        tables = RowTables.some(opened.rows, opened.columns, ~gone)
        if isinstance(index, Upserting):
            none = np.empty((0, facts.dim), np.float32)
            index = index.upsert(tables.all_columns, np.flatnonzero(~gone), none)
        else:
            if not isinstance(index, Shrinking):
                index = Renumbered(index, np.arange(len(index)))
            index.delete(np.flatnonzero(gone))
        facts = replace(facts, deleted=facts.deleted + int(gone.sum()))
        blocks = index.stored() if isinstance(index, Readable) else None
        return write_index(partial, folder, index, tables, facts, blocks)


def merge_parts(folder: Place) -> IndexFacts:
    """Build one index of the parts of an index, from their vectors; return its facts.

    The new index replaces the old one once it is complete. Nothing changes for an index that is not
    in parts.

    Raises the errors of `open_index`, BadInput for a backend that keeps only codes of the vectors,
    Busy if another process writes there.
    """
    if not IndexFacts.read(folder).parts:
        return IndexFacts.read(folder)
    with locked(folder), partial_folder(folder) as partial:
        opened = open_index(folder)
        facts = opened.facts
        blocks = _Chained([_stored(part, facts.backend) for part in segments_of(opened.index)])
        index, indexer = _built(facts, blocks)
        tables = RowTables.some(opened.rows, opened.columns, np.ones(len(index), np.bool_))
        tables = replace(tables, contents=_contents(folder, facts))
        facts = replace(facts, parts=(), options=options_of(indexer))
        return write_index(partial, folder, index, tables, facts, blocks)


def _built(facts: IndexFacts, blocks: Blocks) -> tuple[Index, Indexer]:
    """Build the index of blocks of vectors with the options of an index of parts of them.

    Search options that a build chooses are chosen again, as more rows need more effort. They are
    never less than those of the parts, which the user may have given.
    """
    indexer: Any = make_indexer(facts.backend, {**facts.options, "metric": facts.metric})
    chosen = {each.name for each in fields(indexer) if each.default is None}
    open_options = dict.fromkeys(chosen & indexer.search_options)
    asked = replace(indexer, **open_options)
    if isinstance(asked, Streaming):
        index = asked.build_from(blocks)
    else:
        index = asked.build(np.concatenate([*blocks]))
    if not isinstance(asked, Settling):
        return index, indexer
    settled = cast(Any, asked.settled(index))
    efforts = {
        name: max(value, given)
        for name in open_options
        if (value := getattr(settled, name)) is not None
        and (given := getattr(indexer, name)) is not None
    }
    settled = replace(settled, **efforts)
    if isinstance(settled, Tunable):
        settled.apply(index)
    return index, settled


class _Chained:
    """The blocks of several indices, one after the other."""

    def __init__(self, parts: Sequence[Blocks]) -> None:
        self._parts = parts
        self.rows = sum(part.rows for part in parts)
        self.dim = parts[0].dim

    def __iter__(self) -> Iterator[Vectors]:
        return chain.from_iterable(self._parts)


def _stored(part: Index, backend: str) -> Blocks:
    """Return the vectors of a part. Raises BadInput if there are only codes of them."""
    blocks = part.stored() if isinstance(part, Readable) else None
    if blocks is None:
        raise BadInput(
            f"the parts of backend {backend} do not keep their vectors; index the embeddings again"
        )
    return blocks


def _contents(folder: Place, facts: IndexFacts) -> pa.ChunkedArray | None:
    """Return the hashes of the image files of all parts; None if some have none."""
    found = []
    for part in facts.parts:
        inside = folder_of(part, folder)
        facts_inside = IndexFacts.read(inside)
        if CONTENTS not in facts_inside.files:
            return None
        found.append(read_contents(local_files(inside, facts_inside), part.rows))
    return pa.chunked_array([chunk for each in found for chunk in each.chunks])


def relocate_index(folder: Place, old: str, new: str) -> None:
    """Let the index in the folder know that its images were moved from one folder to another.

    old, new: as `retrieval.storage.roots.with_root` takes them.

    Raises the errors of `with_root` and `IndexFacts.read`, BadInput for an index in a store or in
    parts, Busy if another process writes there.
    """
    facts = IndexFacts.read(folder)
    if isinstance(folder, RemotePath) or facts.parts:
        kind = "in a store" if isinstance(folder, RemotePath) else "in parts"
        raise BadInput(f"an index {kind} cannot be changed; use --root, or index again")
    with locked(folder), partial_folder(folder) as partial:
        facts = IndexFacts.read(folder)
        write_table(partial / ROWS, with_root(read_rows(folder), old, new), "zstd")
        facts = replace(facts, files={**facts.files, ROWS: sha256_of(partial / ROWS)})
        facts.write(partial)
        replace_files(partial, folder, facts)

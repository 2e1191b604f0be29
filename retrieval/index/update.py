"""Rows added to an index that stands, and deleted from it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.contracts import Growing, Readable, Shrinking
from retrieval.errors import BadInput, Mismatch
from retrieval.index.filters import matching
from retrieval.index.folder import (
    IndexFacts,
    OpenIndex,
    check_same_encoder,
    common_facts,
    fresh,
    open_index,
    read_all,
    write_index,
)
from retrieval.storage.files import locked
from retrieval.storage.places import Place
from retrieval.storage.shards import Embeddings, check_unique


def add_rows(folder: Place, sets: Sequence[Embeddings]) -> IndexFacts:
    """The facts of the index in the folder, with the embeddings of all `sets` as further rows.

    It is replaced once the new one is whole. Raises what `open_index` raises, Mismatch for
    embeddings of another encoder, BadData for an id that is there already, BadInput for a backend
    that takes no more rows, Busy if another process writes there. Where the sets were added by an
    earlier call, nothing is left to do.
    """
    IndexFacts.read(folder)  # so that no lock is left in a folder that is none
    with locked(folder), fresh(folder) as partial:
        opened = open_index(folder)
        facts, index = opened.facts, opened.index
        encoder = common_facts(sets)
        check_same_encoder(facts.encoder, encoder, str(folder), str(sets[0].folder))
        if sets[0].facts.dim != facts.dim:
            raise Mismatch(
                f"{sets[0].folder} has {sets[0].facts.dim} dimensions and {folder} has "
                f"{facts.dim}; encode one of them anew"
            )
        if not facts.parts and not isinstance(index, Growing):
            raise BadInput(f"backend {facts.backend} takes no more rows; index all of them anew")
        if _are_there(opened, sets):
            return facts
        if facts.parts:
            from retrieval.index.build_segments import add_part

            check_unique(
                pa.concat_tables([opened.rows, *(each.rows() for each in sets)])["id"],
                " and ".join([str(folder), *(str(each.folder) for each in sets)]),
            )
            return add_part(folder, facts, sets)
        rows, vectors = read_all(sets)
        if len(rows) == 0:
            raise BadInput("there are no embeddings to add; encode some images first")
        rows = pa.concat_tables([opened.rows, rows])
        names = " and ".join(str(each.folder) for each in sets)
        check_unique(rows["id"], f"{folder} and {names}")
        cast(Growing, index).add(vectors)
        blocks = index.stored() if isinstance(index, Readable) else None
        added = tuple(each.identity for each in sets)
        facts = replace(facts, embeddings=(*facts.embeddings, *added))
        return write_index(partial, folder, index, rows, facts, blocks)


def _are_there(opened: OpenIndex, sets: Sequence[Embeddings]) -> bool:
    """Whether the index was built from these sets too, and still has all their rows."""
    if not {each.identity for each in sets} <= set(opened.facts.embeddings):
        return False
    ids = pa.concat_tables([each.rows() for each in sets])["id"]
    return bool(pc.all(pc.is_in(ids, value_set=opened.rows["id"].combine_chunks())).as_py())


def delete_rows(folder: Place, where: str) -> IndexFacts:
    """The facts of the index in the folder, without the rows that the filter admits.

    where: as `Searcher.search` takes it: `label=cat`, `id=a.png,b.png`. It is replaced once the new
    one is whole. Raises what `open_index` and the filter raise, BadInput for a backend that cannot
    delete and for a filter that admits all rows, Busy if another process writes there.
    """
    IndexFacts.read(folder)
    with locked(folder), fresh(folder) as partial:
        opened = open_index(folder)
        facts, index = opened.facts, opened.index
        if facts.parts:
            raise BadInput("an index in parts cannot delete rows; index without them anew")
        if not isinstance(index, Shrinking):
            raise BadInput(
                f"backend {facts.backend} cannot delete rows; index without them anew, or take "
                "exact or ivf"
            )
        gone = matching(opened.rows, where)
        if gone.all():
            raise BadInput(
                f"'{where}' is all {len(gone):,} rows; delete the folder {folder}, or name fewer"
            )
        index.delete(np.flatnonzero(gone))
        rows = opened.rows.filter(pa.array(~gone))
        facts = replace(facts, deleted=facts.deleted + int(gone.sum()))
        blocks = index.stored() if isinstance(index, Readable) else None
        return write_index(partial, folder, index, rows, facts, blocks)

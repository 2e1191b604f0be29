"""Further columns of a table of images, which the user chose."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from retrieval.errors import BadSource, UnknownName
from retrieval.images.source import text
from retrieval.images.tables.cells import labels
from retrieval.images.tables.columns import class_names
from retrieval.images.tables.table import Table, opened
from retrieval.storage.places import Place
from retrieval.storage.sets.columns import as_column, plain_columns


def check_further(where: str, schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise UnknownName for a column that does not exist, BadSource for one of a wrong type."""
    for name in names:
        if name not in schema.names:
            raise UnknownName(f"column of {where}", name, schema.names)
        kind = schema.field(name).type
        if as_column(pa.chunked_array([], kind)) is None:
            raise BadSource(
                f"column '{name}' of {where} is of type {kind}; wanted text, numbers, booleans, "
                "dates or lists of these"
            )


def read_further_columns(file: Place, names: Sequence[str]) -> pa.Table:
    """Return these columns of all rows of the file, as `plain_columns` names them.

    Integers that have names, as classes have, become these names.
    """
    where = text(file)
    with opened(file) as table:
        check_further(where, table.schema, names)
        columns, _ = plain_columns(pa.table(dict(_columns(where, table, names))))
        return pa.table(columns)


def _columns(
    where: str, table: Table, names: Sequence[str]
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    batches = [*table.batches(0, [*names])]
    for name in names:
        kind = table.schema.field(name).type
        column = pa.chunked_array([batch.column(name) for batch in batches], kind)
        if (classes := class_names(where, table.schema, name)) is not None:
            column = pa.chunked_array([pa.array(labels(where, column, classes), pa.string())])
        yield name, column

"""Filters: expressions over the columns of an index, and the short form `FIELD=VALUE`."""

import re
import time
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest

from retrieval.errors import BadInput, UnknownName
from retrieval.where.selection import Selection, select_rows


class Held:
    """Further columns in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.held = table
        self.names = table.column_names

    def table(self, names: list[str]) -> pa.Table:
        return self.held.select(names)


ROWS = pa.table(
    {
        "id": ["a.jpg", "b.jpg", "c (1).jpg", "caf\u00e9.jpg"],
        "label": ["cat", "hot dog", None, "a, b"],
        "path": ["/p/a.jpg", "/p/b.jpg", "/q/c (1).jpg", "/q/caf\u00e9.jpg"],
    }
)
COLUMNS = Held(
    pa.table(
        {
            "taken": pa.array(
                [datetime(2024, 5, 1, 10), datetime(2024, 5, 2), None, datetime(2023, 12, 31, 23)],
                pa.timestamp("ms"),
            ),
            "modified": pa.array([datetime(2024, 5, 1, 12)] * 4, pa.timestamp("ms", "UTC")),
            "width": pa.array([100, 200, 300, None], pa.int32()),
            "height": pa.array([50, 400, 300, 1], pa.int32()),
            "ratio": [2.0, 0.5, 1.0, None],
            "camera": ["Pixel 8", "iPhone 15", None, "Pixel_7"],
            "sharp": [True, False, None, True],
            "my column": ["x", "y", "z", None],
            "not": [1, 2, 3, 4],
        }
    )
)


def select(where: str) -> Selection:
    return select_rows(ROWS, where, COLUMNS)  # type: ignore[arg-type]


@pytest.fixture
def summer_in_paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose time is two hours ahead of UTC."""
    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("where", "found"),
    [
        # Text, with and without quotes.
        ("label = cat", [0]),
        ("label=hot dog,cat", [0, 1]),
        ("label = 'hot dog' or label is null", [1, 2]),
        ('label="a, b"', [3]),
        ("label=a, b", [3]),
        ("label in (cat, 'a, b')", [0, 3]),
        ("label not in (cat, 'a, b')", [1]),
        ("label != cat", [1, 3]),
        ("not label = cat", [1, 3]),
        ("id = 'cafe\u0301.jpg'", [3]),
        ("id = 'c (1).jpg'", [2]),
        ("path like '/q/%'", [2, 3]),
        ("camera like 'Pixel%'", [0, 3]),
        ("camera like 'Pixel\\_%'", [3]),
        ("camera like 'Pixel__'", [0, 3]),
        ("camera not like 'Pixel%'", [1]),
        ("camera ilike 'IPHONE%'", [1]),
        ("id like 'cafe\u0301%'", [3]),
        ("camera >= 'i'", [1]),
        # Numbers.
        ("width > 150", [1, 2]),
        ("not width > 150", [0]),
        ("width<=200", [0, 1]),
        ("width <> 200", [0, 2]),
        ("width == 200", [1]),
        ("width = 100, 300", [0, 2]),
        ("width between 100 and 200", [0, 1]),
        ("width not between 100 and 200", [2]),
        ("width > 1e2", [1, 2]),
        ("ratio < .75", [1]),
        ("ratio > -1 and ratio < 1.5", [1, 2]),
        ("width = 99999999999999999999999", []),
        ("width > height", [0]),
        ("height = width", [2]),
        # Truth and null.
        ("sharp = true", [0, 3]),
        ("sharp != TRUE", [1]),
        ("width is null", [3]),
        ("camera is not null", [0, 1, 3]),
        ("width > 250 or camera is null", [2]),
        ("width > 250 or height = 1", [2, 3]),  # true, though the first is not known
        ("not (width > 250 and height = 1)", [0, 1, 2]),  # not known for the last row
        # Times are intervals.
        ("taken = 2024-05-01", [0]),
        ("taken = 2024-05", [0, 1]),
        ("taken = 2024", [0, 1]),
        ("taken != 2024", [3]),
        ("taken in (2023, 2024-05-02)", [1, 3]),
        ("taken <= 2024-05-01", [0, 3]),
        ("taken < 2024-05-01", [3]),
        ("taken > 2024-05-01", [1]),
        ("taken >= 2024-05-01T10:00", [0, 1]),
        ("taken = '2024-05-01 10:00:00'", [0]),
        ("taken between 2023-12 and 2024-05-01", [0, 3]),
        # Logic and writing.
        ("taken >= 2024-05-01 and camera like 'Pixel%'", [0]),
        ("label = cat or label = 'hot dog' and width > 1000", [0]),
        ("(label = cat or label = 'hot dog') and width > 150", [1]),
        ("label = cat AND NOT width > 150", [0]),
        ('"my column" = x', [0]),
        ('"not" > 2', [2, 3]),
        ("  width\n>\t150 ", [1, 2]),
    ],
)
def test_expressions(where: str, found: list[int]) -> None:
    assert np.flatnonzero(select(where).mask).tolist() == found


def test_times_with_a_zone_are_compared_in_local_time(summer_in_paris: None) -> None:
    """12:00 in UTC is 14:00 in Paris."""
    assert select("modified = 2024-05-01T14:00").mask.all()
    assert not select("modified = 2024-05-01T12:00").mask.any()
    assert select("taken = 2024-05-01T10:00").mask.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "cannot read the filter '' at its end"),
        ("odd", "at its end, where a comparison such as = or >= should stand"),
        ("label =", "at its end, where a value should stand"),
        ("((label = cat)", "at its end, where ) should stand"),
        ("label = cat and dog", "at its end, where a comparison"),
        ("label = cat dog = 1", "at 'dog = 1', where and should stand"),
        ("camera = Pixel 8", "at '8', where and should stand"),
        ("width < > 3", "at '> 3', where a value should stand"),
        ("label ~ cat", "at '~ cat', where a comparison"),
        ("label = 'cat", "at ''cat', where a value should stand"),
        ("width is 3", "at '3', where null should stand"),
        ("width >= 1, 2", "the filter compares width >= 2 values; give one"),
        ("width = big", "column width holds numbers, not 'big'"),
        ("sharp = maybe", "column sharp holds true and false, not 'maybe'"),
        ("width = sharp", "column sharp holds true and false, not numbers"),
        ("width like '1%'", "like compares text, and column width holds numbers"),
        ("taken > tomorrow", "'tomorrow' is not a time; write a date such as 2024-05-01"),
        ("taken = 2024-13-01", "'2024-13-01' is not a time"),
        ("taken = 2024-02-30", "'2024-02-30' is not a time"),
        ("taken = 9999", "'9999' is not a time"),
        ("taken = 0000", "'0000' is not a time"),
        ("id = d.jpg", "no row of the index has the id 'd.jpg'"),
        ("not " * 101 + "width > 1", "more than 100 levels"),
        ("(" * 5000 + "width > 1", "more than 100 levels"),
        ("__import__('os')", "cannot read the filter"),
        ("width > 1; drop table", "cannot read the filter"),
    ],
)
def test_what_cannot_be_read_is_named(where: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        select(where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label = cta", "unknown label in the index 'cta'; did you mean 'cat'?"),
        ("label != cta", "unknown label in the index 'cta'"),
        ("label=hot dgo", "unknown label in the index 'hot dgo'; did you mean 'hot dog'?"),
        ("widht > 3", "unknown column to filter by 'widht'; did you mean 'width'?"),
    ],
)
def test_unknown_names(where: str, message: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(message)):
        select(where)


def test_an_index_without_further_columns_has_three() -> None:
    with pytest.raises(UnknownName, match="there are: id, label, path"):
        select_rows(ROWS, "width > 3")


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ("label=cat", "label"),
        ("label = cat", "label"),
        ("id in (a.jpg, b.jpg)", "id"),
        ("label != cat", None),
        ("label = cat and id = a.jpg", None),
        ("camera = 'Pixel 8'", None),
    ],
)
def test_a_backend_may_apply_a_filter_of_id_or_label(where: str, field: str | None) -> None:
    found = select(where).where
    assert (None if found is None else found.field) == field


def test_whole_numbers_beyond_those_of_float64_are_compared() -> None:
    rows = pa.table({"id": ["a", "b"], "label": ["x", "y"], "path": ["p", "q"]})
    columns = {"width": pa.array([2**53 + 1, 3]), "iso": pa.array([1e300, 0.5])}
    table = rows.append_column("width", columns["width"]).append_column("iso", columns["iso"])
    for where, found in (
        ("iso < 9007199254740993", [False, True]),
        ("width > 1.5e3", [True, False]),
        ("width < iso", [True, False]),
        ("width = iso", [False, False]),
    ):
        assert select_rows(table, where).mask.tolist() == found, where


def test_a_long_list_of_values_is_fast() -> None:
    names = [f"{number}.jpg" for number in range(20_000)]
    rows = pa.table({"id": names, "label": names, "path": names})
    began = time.process_time()
    found = select_rows(rows, f"id in ({', '.join(names[::2])})")
    assert int(found.mask.sum()) == 10_000
    assert time.process_time() - began < 10  # seconds; it took 0.4

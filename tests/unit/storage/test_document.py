"""JSON documents as dataclasses: each type, each error with its field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from retrieval.contracts import Json
from retrieval.errors import BadData
from retrieval.storage.document import check_at_least, fields_of, parsed, read_document
from retrieval.storage.files import sealed, write_json, write_sealed


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


@dataclass(frozen=True)
class Circle:
    radius: float


@dataclass(frozen=True)
class Drawing:
    title: str
    color: Color
    points: tuple[Point, ...]
    shape: Point | Circle
    filled: bool = False
    note: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)


WHOLE: dict[str, Json] = {
    "title": "one",
    "color": "blue",
    "points": [{"x": 1, "y": 2}, {"x": 3}],
    "shape": {"radius": 0.5},
    "note": None,
    "counts": {"a": 2},
    "extra": {"anything": [1, None, {"x": "y"}]},
}


def test_a_document_becomes_the_dataclass() -> None:
    assert parsed(WHOLE, Drawing, "here", "draw again") == Drawing(
        "one",
        Color.BLUE,
        (Point(1, 2.0), Point(3)),
        Circle(0.5),
        counts={"a": 2},
        extra={"anything": [1, None, {"x": "y"}]},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": 3}, "field 'title' must be text, not 3"),
        ({"title": None}, "field 'title' must be text, not None"),
        ({"color": "green"}, "field 'color' must be one of red, blue, not 'green'"),
        ({"color": ["red"]}, "field 'color' must be one of red, blue, not ['red']"),
        ({"points": {"x": 1}}, "field 'points' must be a list, not {'x': 1}"),
        ({"points": [{"x": 1}, {"y": 1}]}, "field 'points.1.x' is missing"),
        ({"points": [{"x": True}]}, "field 'points.0.x' must be a whole number, not True"),
        ({"points": [{"x": 1.0}]}, "field 'points.0.x' must be a whole number, not 1.0"),
        ({"points": [{"x": 1, "y": "2"}]}, "field 'points.0.y' must be a number, not '2'"),
        ({"points": [{"x": 1, "y": False}]}, "field 'points.0.y' must be a number, not False"),
        ({"points": [[1, 2]]}, "field 'points.0' must be an object, not [1, 2]"),
        ({"shape": 1}, "field 'shape' must be an object, not 1"),
        ({"shape": {"radius": None}}, "field 'shape.radius' must be a number, not None"),
        ({"filled": 1}, "field 'filled' must be true or false, not 1"),
        ({"note": 1}, "field 'note' must be text, not 1"),
        ({"counts": []}, "field 'counts' must be an object, not []"),
        ({"counts": {"a": "b"}}, "field 'counts.a' must be a whole number, not 'b'"),
        ({"weight": 1}, "field 'weight' is unknown"),
        ({"a\nb": 1}, r"field 'a\nb' is unknown"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Json], message: str) -> None:
    with pytest.raises(BadData) as raised:
        parsed(WHOLE | changes, Drawing, "drawing.json", "draw again")
    assert str(raised.value) == f"drawing.json: {message}; draw again"


def test_a_missing_field_is_named_and_defaults_may_be_missing() -> None:
    for name in WHOLE:
        rest = {key: value for key, value in WHOLE.items() if key != name}
        if name in ("note", "counts", "extra"):
            assert parsed(rest, Drawing, "here", "draw again").title == "one"
        else:
            with pytest.raises(BadData, match=f"^here: field '{name}' is missing; draw again$"):
                parsed(rest, Drawing, "here", "draw again")


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_what_is_not_an_object_is_refused(value: object) -> None:
    with pytest.raises(BadData, match=r"^here: the document must be an object, not "):
        parsed(value, Drawing, "here", "draw again")


def test_long_values_are_cut_and_huge_numbers_refused() -> None:
    with pytest.raises(BadData) as raised:
        parsed(WHOLE | {"filled": "x" * 1000}, Drawing, "here", "draw again")
    assert len(str(raised.value)) < 140
    with pytest.raises(BadData, match="field 'radius' must be a number, not 1000"):
        parsed({"radius": 10**400}, Circle, "here", "draw again")


def test_a_sealed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    write_sealed(path, "a-point", 2, {"x": 1})
    assert read_document(path, Point, "a-point", 2, "draw again") == Point(1)
    write_json(path, sealed({"format": "a-point", "version": 2, "x": "1"}))
    with pytest.raises(BadData, match=r"point.json: field 'x' must be a whole number, not '1'"):
        read_document(path, Point, "a-point", 2, "draw again")
    write_json(path, {"format": "a-point", "version": 2, "x": 1})
    with pytest.raises(BadData, match="checksum"):
        read_document(path, Point, "a-point", 2, "draw again")


def test_fields_and_counts() -> None:
    assert fields_of({"x": 1, "z": 2}, Point) == {"x": 1}
    check_at_least(1, {"x": 1}, "here", "draw again")
    with pytest.raises(BadData, match=r"^here: field 'x' must be 1 or more, not 0; draw again$"):
        check_at_least(1, {"x": 0}, "here", "draw again")

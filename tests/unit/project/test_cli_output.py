"""Output of commands: with a progress bar, on a terminal, and as numbers."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import Output, distinguishable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_sentences_stand_on_lines_of_their_own_above_a_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    output = Output()
    with output.progress("work", "image") as show:
        show(1, 4)
        output.say("a sentence")
        show(4, 4)
    drawn = terminal.getvalue()
    assert "work" in drawn
    line = next(line for line in drawn.split("\n") if "a sentence" in line)
    assert line.rpartition("\r")[2] == "a sentence"


def test_a_terminal_is_not_commanded_by_labels_and_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = "cat\x1b]0;owned\x07\x9b2J\r\nrow"
    for output in (Output(), Output(json=True)):
        output.say(f"a query ({hostile})")
        output.table(("label", "id"), [(hostile, hostile)])
        output.document([hostile])
        output.warn(hostile)
    printed = capsys.readouterr()
    assert not {*printed.out, *printed.err} & {*map(chr, range(32)), *map(chr, range(127, 160))} - {
        "\n"
    }
    written = r"cat\x1b]0;owned\x07\x9b2J\r\nrow"
    assert printed.err.splitlines() == [f"warning: {written}"] * 2
    sentence, rest, header, _, row, document = printed.out.splitlines()
    assert (sentence, rest) == (r"a query (cat\x1b]0;owned\x07\x9b2J\r", "row)")
    assert header.split() == ["label", "id"]
    assert row.split() == [written, written]
    assert json.loads(document) == [hostile]


@pytest.mark.parametrize(
    ("distances", "written"),
    [
        ([], []),
        ([0.0], ["0.0000"]),
        ([0.5, 0.25, 0.5], ["0.5000", "0.2500", "0.5000"]),
        ([12.345678], ["12.3457"]),
        ([0.0001213, 0.0001251, 0.00018], ["0.0001213", "0.0001251", "0.0001800"]),
        ([0.32183712, 0.32183718], ["0.3218371", "0.3218372"]),
        ([0.0, 5.96e-8, 0.3], ["0.0000000", "0.0000001", "0.3000000"]),
        ([-3.0, -0.0, -0.00001], ["-3.00000", "0.00000", "-0.00001"]),
        ([1e-12, 2e-12], ["1e-12", "2e-12"]),
        ([1e30, 1.5e30], ["1e+30", "1.5e+30"]),
        ([0.1, 0.1 + 1e-12], ["0.1000", "0.1000"]),  # the same in float32
    ],
)
def test_distances_are_told_apart_with_few_digits(
    distances: list[float], written: list[str]
) -> None:
    assert distinguishable(distances) == written


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=12))
def test_different_distances_look_different_and_equal_ones_equal(distances: list[float]) -> None:
    written = distinguishable(distances)
    assert len({*written, *distinguishable([0.0])}) >= len({*distances, 0.0})
    assert len({*zip(distances, written, strict=True)}) == len({*written})
    np.testing.assert_allclose([*map(float, written)], distances, rtol=1e-3, atol=1e-4)

"""What commands print while a bar is drawn."""

import io
import json
import sys

import pytest

from cli.output import Output


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

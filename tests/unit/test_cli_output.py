"""What commands print while a bar is drawn."""

import io
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

"""`retr search --preview`: pictures in a terminal, and none in a pipe."""

import os
import pty
import re
import struct
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest

from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import CONSOLE_SCRIPT, Retr

pytestmark = pytest.mark.usefixtures("launched")


def in_a_terminal(arguments: list[str], columns: int) -> str:
    """Return the output of the command in a terminal with this many columns."""
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(columns))
        os.execv(CONSOLE_SCRIPT, [str(CONSOLE_SCRIPT), *arguments])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux reports the closed other end like this
            break
        if not part:
            break
        written += part
    assert os.waitpid(child, 0)[1] == 0, written
    return written.decode()


def test_neighbors_are_drawn_in_a_terminal(retr: Retr, gallery: Gallery) -> None:
    save(retr.cwd / "query.png", seed=1)
    asked = ["search", str(retr.cwd / "query.png"), "-k", "5", "--index", str(gallery.index())]
    written = in_a_terminal([*asked, "--preview"], columns=80)
    assert "Traceback" not in written and "Failed" not in written
    blocks = [line for line in written.splitlines() if "▀" in line or "▄" in line]
    # Four pictures of 16 cells fit in a row of 8 lines; there are a query and 5 neighbors.
    assert len(blocks) == 2 * 8
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    below = plain[plain.index("query.png query") :].splitlines()
    captions = [line for line in below if re.match(r"query\.png query|\d  ", line)]
    assert captions[0].startswith("query.png query") and "3  " in captions[0]
    assert captions[1].startswith("4  ") and "5  " in captions[1]


def test_a_pipe_gets_no_pictures(retr: Retr, gallery: Gallery) -> None:
    save(retr.cwd / "query.png", seed=1)
    asked = ("search", "query.png", "-k", "5", "--index", gallery.index())
    assert retr(*asked, "--preview").out == retr(*asked).out
    assert retr.json(*asked, "--preview") == retr.json(*asked)

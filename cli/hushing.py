"""Keeps what libraries print out of the way of what commands print."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from cli.streams import error_stream


@contextmanager
def hushed(debug: bool = False) -> Iterator[None]:
    """Meanwhile what goes to stdout is lost, and what libraries in C write to stderr.

    Python's `sys.stderr` still leads where it did, for progress and warnings. `debug`: nothing is
    lost, but all of it goes to stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with (
        Path(os.devnull).open("w", encoding="utf-8") as sink,
        error_stream(os.dup(2)) as stderr,
    ):
        os.dup2(kept[1] if debug else sink.fileno(), 1)
        if not debug:
            os.dup2(sink.fileno(), 2)
        try:
            with redirect_stdout(stderr if debug else sink), redirect_stderr(stderr):
                yield
        finally:
            for standard, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, standard)
                os.close(descriptor)

"""Keep the output of libraries apart from the output of commands."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from cli.streams import error_stream


@contextmanager
def quiet_libraries(debug: bool = False) -> Iterator[None]:
    """Discard stdout, and writes of C code to stderr.

    Python's `sys.stderr` still works, for progress and warnings.

    debug: discard nothing, and send all of it to stderr.
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

"""Processes forked from a server that has imported all modules.

Each process of pytest has one such server. Its first user decides what it imports, so all tests use
`PRELOADED`. A test saves the time of the imports, and a kill at a random moment hits the work.
"""

import multiprocessing
from functools import cache
from multiprocessing.context import ForkServerContext
from tempfile import TemporaryDirectory

import pytest

from cli.main import COMMANDS

PRELOADED = (
    *(f"cli.commands.{module}" for module in COMMANDS.values()),
    "cli.pictures",
    "encoders.layers",
    "encoders.siamese",
    "encoders.toy",
    "encoders.training.checks",
    "encoders.training.optimization.losses",
    "encoders.training.reports",
    "encoders.training.run",
    "encoders.training.trainer",
    "indexers.exact",
    "indexers.hnsw",
    "indexers.hnsw_pca",
    "indexers.ivf",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "pydantic.types",
    "retrieval.drawing.plots",
    "retrieval.images.datasets.digits",
    "retrieval.inspection",
    "retrieval.quality.evaluation",
    "retrieval.index.build_segments",
    "retrieval.index.update",
    "s3fs",
    "sklearn.datasets",
    "torch._dynamo",
    "tests.cli.running",
    "tests.large_pages",  # the last: it changes the memory of all others
)


@cache
def forking() -> ForkServerContext:
    """Return the context that starts such processes; the first call starts the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    first = context.Process(target=int)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", folder)  # where matplotlib writes its list of fonts
        first.start()
        first.join()
    return context

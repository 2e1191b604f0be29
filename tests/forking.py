"""Processes that are forked from one in which all imports are done.

There is one such server in each process of pytest, and what it imports is settled by the first who
starts it: so it is the same for all tests. It saves the tests most of their time, and a kill at a
random moment meets the work and not the imports.
"""

import multiprocessing
from functools import cache
from multiprocessing.context import ForkServerContext

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
    "indexers.ivf",
    "retrieval.drawing.plots",
    "retrieval.images.datasets.digits",
    "retrieval.inspection",
    "retrieval.quality.evaluation",
    "retrieval.index.build_segments",
    "retrieval.index.update",
    "sklearn.datasets",
    "torch._dynamo",
)


@cache
def forking() -> ForkServerContext:
    """What starts such processes, with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    first = context.Process(target=int)
    first.start()
    first.join()
    return context

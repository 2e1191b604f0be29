"""Encode a source on a Ray cluster. The shards are the same as those of one machine.

Workers write whole shards into `early.partial/`, a folder inside the embeddings folder, which all
nodes share. Only the driver moves them out, in order, and lists them in the manifest. So a worker
that was taken for lost and comes back does no harm. The next run with the same facts uses the
shards that a killed run left there.

    early.partial/RUN                                           empty: these nodes share the folder
    early.partial/part-00007.parquet/ATTEMPT/begun
                                             part-00007.parquet
                                             outcome.json       written last: facts, shard, skipped
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from uuid import uuid4

from retrieval.contracts import Encoder
from retrieval.embedding.early_shards import EarlyShard, Queue
from retrieval.embedding.encode import (
    SHARD_IMAGES,
    Further,
    Outcome,
    facts_of,
    finished,
    writer_of,
)
from retrieval.embedding.plan import plan_of
from retrieval.embedding.ray_worker import Names, ShardMaker, ShardTask, first_path
from retrieval.errors import RetrError
from retrieval.images import Source
from retrieval.images.folders.listing import listed
from retrieval.images.pixels.megapixels import max_megapixels
from retrieval.runtime.ray import cluster_workers, connected, map_on_workers
from retrieval.storage.files import (
    locked,
    made_folder,
    remove,
)
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import Dtype
from retrieval.storage.sets.shard_writer import check_embeddings_folder

MAX_ATTEMPTS = 5  # to encode one shard, before the run fails


def encode_on_cluster(
    names: Names,
    source: Source,
    encoder: Encoder,
    folder: Place,
    dtype: Dtype | str = Dtype.FLOAT32,
    shard_images: int = SHARD_IMAGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    address: str | None = None,
    attempts: int = MAX_ATTEMPTS,
    check_content: bool = False,
) -> Outcome:
    """Encode the source on a cluster, with the result of `bring_up_to_date`.

    names: names by which every node opens source and encoder.
    source, encoder: the same, opened on this machine; the encoder may be on the CPU. A folder of
        images is listed only here, and its files are sent to the nodes.
    folder: a folder that all nodes share. address: as for `connected`. progress: after each shard.

    Raises the errors of `encode_source` and `connected`; Mismatch if a node has other images,
    another encoder or another folder than this machine; WorkerFailed for unexpected errors, and for
    a shard whose workers died `attempts` times.
    """
    folder = folder.absolute()
    facts = facts_of(source, encoder, dtype, shard_images)
    check_embeddings_folder(folder)
    fresh = not folder.exists()
    made_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        writer = writer_of(source, folder, facts, check_content)
        further = Further.of(source, writer)
        if writer.manifest.complete:
            return further.unchanged(writer)
        try:
            stack.enter_context(connected(address))
        except RetrError:
            if fresh and folder.is_dir():
                remove(folder)
            raise
        workers = cluster_workers(names.device)
        plan = plan_of(source, writer, check_content, progress)
        queue = Queue(writer, plan, progress, listed(source))
        task = ShardTask(
            names=replace(names.absolute(), device="cuda" if workers.gpus else "cpu"),
            plan=plan,
            source=source if listed(source) else None,
            first=first_path(source),
            folder=queue.folder,
            run=_new_run(queue.folder),
            threads=workers.cpus,
            attempts=attempts,
            version=version("retr"),
            megapixels=max_megapixels(),
        )
        if missing := queue.missing():
            for outcome in map_on_workers(ShardMaker(task), missing, workers):
                queue.add(EarlyShard.of_json(json.loads(outcome)))
        return queue.tally.outcome(finished(writer, further), further)


def _new_run(folder: Place) -> Place:
    """Write an empty file, by which workers see that they share the folder; return it."""
    run = folder / uuid4().hex
    run.touch()
    return run

"""Run `retr` with an engine `ray` that makes shards of 10 images."""

from functools import partial

import retrieval.embedding.on_ray as engine
from cli.main import main

engine.encode_on_cluster = partial(engine.encode_on_cluster, shard_images=10)  # type: ignore

if __name__ == "__main__":
    main()

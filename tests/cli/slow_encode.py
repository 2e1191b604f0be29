"""Encode FILE into OUT in shards of 50 images, slowly, so that the run can be killed.

python slow_encode.py FILE OUT SECONDS_PER_BATCH
"""

import sys
import time
from pathlib import Path

from encoders.toy import Toy
from retrieval.contracts import Images, Vectors
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source

SHARD_IMAGES = 50


class Slow(Toy):
    """The toy encoder, which sleeps for this many seconds in each batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def encode(self, images: Images) -> Vectors:
        """Return the mean colors, late."""
        time.sleep(self.seconds)
        return super().encode(images)


def encode(file: Path, out: Path, seconds: float = 0) -> None:
    """Encode the file into the folder `out`."""
    encode_source(open_source(str(file)), Slow(seconds), out, shard_images=SHARD_IMAGES)


if __name__ == "__main__":
    encode(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))

"""Seeds, inputs that fuzzing has found, and random changes: no crash, no hang, bounded memory."""

import random
import resource
import time
from pathlib import Path

import pytest
import targets

CORPUS = Path(__file__).parent / "corpus"
CHANGED_INPUTS = 60  # for each target
MAX_SECONDS = 5  # for one input; most take a millisecond
MAX_GROWTH_BYTES = 1 << 30  # growth of the process by all inputs of a target


def changed(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes with some flipped, deleted, repeated, or replaced by extreme numbers."""
    after = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        start = draw.randrange(len(after) + 1)
        end = min(len(after), start + draw.choice((1, 2, 4, 8, 100)))
        match draw.randrange(5):
            case 0 if start < len(after):
                after[start] ^= 1 << draw.randrange(8)
            case 1:
                del after[start:end]
            case 2:
                after[start:start] = after[start:end]
            case 3:
                after[start:end] = draw.choice((b"\xff", b"\x00", b"\x7f")) * (end - start)
            case _:
                del after[draw.randrange(len(after) + 1) :]
    return bytes(after)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    draw = random.Random(name)
    seeds = targets.seeds(name)
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    inputs = [b"", *seeds, *(path.read_bytes() for path in kept)]
    inputs += [changed(draw.choice(seeds), draw) for _ in range(CHANGED_INPUTS)]
    target = targets.TARGETS[name]
    target(seeds[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in inputs:
        began = time.perf_counter()
        target(data)
        assert time.perf_counter() - began < MAX_SECONDS
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MAX_GROWTH_BYTES, f"{grown:,} bytes for {len(inputs)} inputs"

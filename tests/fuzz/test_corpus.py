"""Seeds, what fuzzing has found, and random changes of both: no crash, no hang, no flood."""

import random
import resource
import time
from pathlib import Path

import pytest
import targets

CORPUS = Path(__file__).parent / "corpus"
CHANGED = 60  # inputs from each target's seeds
SECONDS = 5  # that one input may take; most take a thousandth
FLOOD = 1 << 30  # bytes that all inputs of a target together may add to the process


def changed(data: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them flipped, cut out, doubled, or replaced by extreme numbers."""
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
def test_any_bytes(name: str) -> None:
    draw = random.Random(name)
    seeds = targets.seeds(name)
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    inputs = [b"", *seeds, *(path.read_bytes() for path in kept)]
    inputs += [changed(draw.choice(seeds), draw) for _ in range(CHANGED)]
    target = targets.TARGETS[name]
    target(seeds[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in inputs:
        began = time.perf_counter()
        target(data)
        assert time.perf_counter() - began < SECONDS
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < FLOOD, f"{grown:,} bytes for {len(inputs)} inputs"

"""Time texts of a dual encoder: `python -m benchmarks.speed.words --help`.

The exported text network embeds single texts, and batches. Both alternate with the bare runtime:
ONNX Runtime on tokens that are ready. The first call of each is not counted.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, cast

import numpy as np
from onnxruntime import InferenceSession

from benchmarks.suite import machine
from retrieval.contracts import Json, TextEncoder
from retrieval.embedding.onnx_cache import (
    TEXT_NETWORK,
    export_folder,
    keep_export,
    open_export,
)
from retrieval.errors import BadInput
from retrieval.registry import open_encoder

TEXTS = ("a photo of a truck", "two dogs on a beach", "the old ship in the harbor at night")


def measure(name: str, batch: int, repeats: int) -> dict[str, Json]:
    """Return milliseconds of one text, and texts a second in batches, with the bare runtime's.

    Raises BadInput for an encoder that takes no words.
    """
    encoder = open_encoder(name, "cpu")
    keep_export(encoder)
    exported: Any = open_export(encoder.fingerprint, text=True)
    if not isinstance(exported, TextEncoder):
        raise BadInput(f"{name} takes no words; name another encoder")
    results: dict[str, Json] = {"encoder": name, "machine": machine.describe()}
    session = InferenceSession(export_folder(encoder.fingerprint) / TEXT_NETWORK)
    at_once = 64
    for kind, count in (("one", 1), ("batch", batch)):
        texts = [f"{TEXTS[i % len(TEXTS)]} {i}" for i in range(count)]
        tokens = cast(Any, exported).tokenizer(texts)
        parts = [tokens[at : at + at_once] for at in range(0, count, at_once)]

        def bare(parts: list[Any] = parts) -> None:
            for part in parts:
                session.run(None, {"tokens": part})

        def ours(texts: list[str] = texts) -> None:
            exported.encode_text(texts)

        times = _alternating(ours, bare, repeats)
        results[kind] = {
            "texts": count,
            "milliseconds": 1000 * median(times[0]),
            "bare_milliseconds": 1000 * median(times[1]),
            "share_of_bare_speed": median(np.divide(times[1], times[0]).tolist()),
        }
    return results


def _alternating(
    ours: Callable[[], None], bare: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each repetition of both, in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repeats + 1):
        for of, call in zip(taken, (ours, bare), strict=True):
            began = time.perf_counter()
            call()
            if repetition:
                of.append(time.perf_counter() - began)
    return taken


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="words-small")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    print(json.dumps(measure(given.encoder, given.batch, given.repeats), indent=2))


if __name__ == "__main__":
    main()

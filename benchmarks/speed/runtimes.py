"""Compare runtimes for a network: `python -m benchmarks.speed.runtimes --help`.

The encoder's network runs eagerly in float32 and in bfloat16, compiled by torch, and exported to
ONNX in ONNX Runtime and OpenVINO. The runtimes alternate, so that a slow phase of the machine
affects all. The table has images per second, and the deviation from float32: the lowest cosine
similarity of an image's two embeddings. A runtime that is missing or fails has its error instead.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.suite import machine
from retrieval.contracts import Images, Json, Vectors
from retrieval.images import Source, load, open_source
from retrieval.registry import open_encoder
from retrieval.runtime.threads import usable_cores

FLOAT32 = "float32"  # the reference
Run = Callable[[Images], Vectors]
"""Embeddings (n, dim) of a batch (n, side, side, 3) uint8."""


def ways(encoder: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Return the function that prepares each runtime, by name. It may raise any exception."""

    def torch_run(dtype: torch.dtype, network: Callable[[Tensor], Tensor]) -> Run:
        @torch.inference_mode()
        def run(images: Images) -> Vectors:
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                embeddings: Vectors = network(pixels).float().numpy()
            return embeddings

        return run

    def exported() -> str:
        path = folder / "network.onnx"
        if not path.exists():
            encoder.export(path)
        return str(path)

    def onnxruntime() -> Run:
        library = import_module("onnxruntime")
        options = library.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        session = library.InferenceSession(exported(), options)
        return lambda images: np.asarray(session.run(None, {"images": images})[0])

    def openvino(precision: str) -> Run:
        library = import_module("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores(),
        }
        model = library.Core().compile_model(exported(), "CPU", settings)
        return lambda images: np.asarray(model([images])[0])

    network = encoder.network
    yield FLOAT32, lambda: torch_run(torch.float32, network)
    yield "bfloat16", lambda: torch_run(torch.bfloat16, network)
    yield (
        "bfloat16, torch.compile",
        lambda: torch_run(torch.bfloat16, cast(Any, torch.compile(network))),
    )
    yield "ONNX Runtime float32", onnxruntime
    yield "OpenVINO float32", lambda: openvino("f32")
    yield "OpenVINO bfloat16", lambda: openvino("bf16")


def measure(
    encoder_name: str, source: Source, batch: int | None, repeats: int, only: Collection[str] = ()
) -> dict[str, Json]:
    """Return images per second in each repetition, and the lowest cosine, for each runtime.

    only: names of the runtimes to measure besides float32; empty: all.
    """
    encoder = cast(Any, open_encoder(encoder_name, "cpu"))
    size, side = batch or encoder.batch, encoder.framing.side
    pixels = np.stack([load(item, encoder.framing) for item in source.items()])
    batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    found: dict[str, Json] = {}
    ready: dict[str, Run] = {}
    expected: Vectors | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name, make in ways(encoder, Path(folder)):
            if only and name not in {FLOAT32, *only}:
                continue
            try:
                ready[name] = make()
                met = np.concatenate([ready[name](each) for each in batches])
            except Exception as error:  # from many libraries
                ready.pop(name, None)
                reason = str(error).splitlines()
                found[name] = {"failed": f"{type(error).__name__}: {reason[0] if reason else ''}"}
                continue
            expected = met if expected is None else expected
            lengths = np.linalg.norm(met, axis=1) * np.linalg.norm(expected, axis=1)
            cosine = (met * expected).sum(axis=1) / lengths
            found[name] = {"least_cosine": float(cosine.min())}
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(repeats):
            for name, run in ready.items():
                started = time.perf_counter()
                for each in batches:
                    run(each)
                rates[name].append(len(pixels) / (time.perf_counter() - started))
    for name, taken in rates.items():
        of_name = cast(dict[str, Json], found[name])
        of_name |= {"images_per_second": median(taken), "repeats": cast(Json, taken)}
    return {
        "encoder": encoder.name,
        "source": source.name,
        "images": len(pixels),
        "side": side,
        "batch": size,
        "ways": found,
        "machine": machine.describe(),
    }


def main() -> None:
    """Print the comparison, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="siamese")
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--split", help="train or test, if the source has splits")
    parser.add_argument("--batch", type=int, help="default: the encoder's")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--way",
        action="append",
        default=[],
        help="runtime to compare with float32, by its name in the result; default: all. "
        "bfloat16 takes minutes on processors without it",
    )
    given = parser.parse_args()
    source = open_source(given.source, given.split, limit=given.images)
    result = measure(given.encoder, source, given.batch, given.repeats, given.way)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""The runtime `openvino`: OpenVINO's plug-in for the CPU."""

import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from retrieval.choices import choice
from retrieval.contracts import Images, Vectors
from retrieval.embedding.runtimes.contract import Arithmetic, Run
from retrieval.errors import BadData

CAPABILITIES = {
    "FP32": Arithmetic.FLOAT32,
    "BF16": Arithmetic.BFLOAT16,
    "INT8": Arithmetic.INT8,
}
HINTS = {Arithmetic.BFLOAT16: "bf16"}  # quantized layers say so themselves; the others are float32

KEEP_FLOAT32 = "precise_0"
"""Mark of an operation that OpenVINO's CPU plug-in is not to move to bfloat16; in its sources,
`DisableFP16Compression`. Version 2026.4 ignores it unless it is read from a file of OpenVINO. So a
network is either in bfloat16 as a whole there, or its noise is too large and it is not."""


class OpenVino:
    """OpenVINO: the network of each call runs on its own core."""

    version: str = str(openvino.__version__).partition("-")[0]

    def __init__(self) -> None:
        self._core = openvino.Core()

    def arithmetics(self) -> frozenset[Arithmetic]:
        """Return the arithmetics that this processor has instructions for."""
        names = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return frozenset(CAPABILITIES[name] for name in names if name in CAPABILITIES)

    def open(
        self, network: Path, arithmetic: Arithmetic, calls: int, wide: Collection[str] = ()
    ) -> Run:
        """Open the network, see the contract. Raises BadData for a file that cannot be read."""
        arithmetic = choice(Arithmetic, arithmetic)
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS.get(arithmetic, "f32"),
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": calls,
            "INFERENCE_NUM_THREADS": calls,
        }
        try:
            read = self._core.read_model(str(network))
            for operation in read.get_ops() if wide else ():
                if operation.get_friendly_name() in wide:
                    operation.get_rt_info()[KEEP_FLOAT32] = True
            model: Any = self._core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise BadData(f"cannot read {network} ({reason}); export it again") from None
        # The binding's first call takes a lock while it waits for Python's: two first calls at once
        # would wait for each other for ever.
        height, width = (int(model.input(0).partial_shape[axis].get_length()) for axis in (1, 2))
        model.create_infer_request().infer({0: np.zeros((1, height, width, 3), np.uint8)})
        requests = threading.local()

        def run(images: Images) -> Vectors:
            if not hasattr(requests, "own"):
                requests.own = model.create_infer_request()
            given = np.ascontiguousarray(images)
            found: Vectors = requests.own.infer({0: given}, share_inputs=True)[0]
            return found.copy()  # the next call overwrites it

        return run

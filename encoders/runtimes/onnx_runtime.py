"""The runtime `onnx`: ONNX Runtime."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession, SessionOptions, disable_telemetry_events

from retrieval.choices import choice
from retrieval.contracts import Images, Vectors
from retrieval.embedding.runtimes.contract import Arithmetic, Run
from retrieval.errors import BadData

LOG_FATAL = 4  # level of ONNX Runtime's log; errors are raised too

disable_telemetry_events()  # searches are private


class OnnxRuntime:
    """ONNX Runtime: the network of each call runs on its own thread."""

    version: str = onnxruntime.__version__

    def arithmetics(self) -> frozenset[Arithmetic]:
        """Return the arithmetics that this processor has instructions for."""
        return frozenset({Arithmetic.FLOAT32, Arithmetic.INT8})

    def open(
        self, network: Path, arithmetic: Arithmetic, calls: int, wide: Collection[str] = ()
    ) -> Run:
        """Open the network, see the contract. Raises BadData for a file that cannot be read."""
        arithmetic = choice(Arithmetic, arithmetic)
        session = opened(network, threads=1)

        def run(images: Images) -> Vectors:
            found: Vectors = session.run(None, {"images": np.ascontiguousarray(images)})[0]
            return found

        return run


def opened(network: Path, threads: int) -> InferenceSession:
    """Return a session of the network. Raises BadData if it cannot be read.

    threads: that compute each call.
    """
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_FATAL
    try:
        return InferenceSession(network, options)
    except Exception as error:  # ONNX Runtime's errors share no type
        reason = str(error).splitlines()[0]
        raise BadData(f"cannot read {network} ({reason}); export it again") from None

"""Rewrite exported networks to compute in integers of 8 bits.

ONNX Runtime's quantizer measures the range of each layer's input on images, and writes operators
that both runtimes turn into integer arithmetic (QDQ: Jacob et al., arXiv:1712.05877). Weights have
a scale for each output channel.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from retrieval.contracts import Images

QUANTIZED = ("Conv", "MatMul", "Gemm")  # operators that take the time
PASSED = ("MaxPool", "Add")  # quantized between those, so that numbers stay integers
CALIBRATION_BATCH = 16


class Qdq:
    """The quantizer `qdq`."""

    def layers(self, network: Path) -> Sequence[tuple[str, ...]]:
        """Return the layers that it can quantize, first to last: the operators of each."""
        graph = onnx.load(network, load_external_data=False).graph
        layers: dict[str, list[str]] = {}
        for node in graph.node:
            if node.op_type in QUANTIZED:
                layers.setdefault(node.input[1], []).append(node.name)  # its weights
        return [tuple(names) for names in layers.values()]

    def calibrated(self, network: Path, images: Images, folder: Path) -> "CalibratedNetwork":
        """Prepare to measure the ranges of numbers on images (n, side, side, 3).

        folder: an existing folder for files that the result needs.
        """
        return CalibratedNetwork(network, images, folder)


class CalibratedNetwork:
    """An exported network with the ranges of the numbers inside it."""

    def __init__(self, network: Path, images: Images, folder: Path) -> None:
        """Prepare the network. The ranges are measured when it is first written."""
        self._images = images
        self._prepared = folder / "prepared.onnx"
        with _quiet():
            quant_pre_process(network, self._prepared, skip_symbolic_shape=True)

    def write(self, wide: Collection[str], target: Path) -> None:
        """Write the network in integers of 8 bits to `target`; operators in `wide` keep float32."""
        kept = onnx.load(self._prepared, load_external_data=False).graph.node
        present = {node.name for node in kept}
        with _quiet():
            quantize_static(
                self._prepared,
                target,
                _Batches(self._images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*QUANTIZED, *PASSED],
                nodes_to_exclude=[name for name in wide if name in present],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._prepared.with_suffix(".ranges"),
            )


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """Images in the form that the quantizer asks for."""

    def __init__(self, images: Images) -> None:
        parts = range(0, len(images), CALIBRATION_BATCH)
        self._parts = iter([images[start : start + CALIBRATION_BATCH] for start in parts])

    def get_next(self) -> dict[str, Images] | None:
        """Return the next input of the network; None after the last."""
        part = next(self._parts, None)
        return None if part is None else {"images": np.ascontiguousarray(part)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice off the log."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The runtime `openvino`: OpenVINO's plug-in for the CPU."""

import threading
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
from openvino._offline_transformations import apply_moc_transformations

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

KEEP_FLOAT32 = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
"""Mark of an operation that OpenVINO's CPU plug-in is not to move to bfloat16. Its binding for
Python can't set it, so it is written into the description of the network, in XML."""

WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}
WITHOUT_BIAS = "/WithoutBiases"  # end of the name of a convolution whose bias is added apart


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
            if wide and arithmetic is Arithmetic.BFLOAT16:
                read = self._marked(read, frozenset(wide))
            model: Any = self._core.compile_model(read, "CPU", settings)
            # The binding's first call takes a lock while it waits for Python's: two first calls at
            # once would wait for each other for ever.
            height, width = (
                int(model.input(0).partial_shape[axis].get_length()) for axis in (1, 2)
            )
            model.create_infer_request().infer({0: np.zeros((1, height, width, 3), np.uint8)})
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise BadData(f"cannot run {network} ({reason}); export it again") from None
        requests = threading.local()

        def run(images: Images) -> Vectors:
            if not hasattr(requests, "own"):
                requests.own = model.create_infer_request()
            given = np.ascontiguousarray(images)
            found: Vectors = requests.own.infer({0: given}, share_inputs=True)[0]
            return found.copy()  # the next call overwrites it

        return run

    def _marked(self, model: Any, wide: Collection[str]) -> Any:
        """Return the network with marks on operators that stay in float32.

        It is simplified first: the plug-in would replace some operators, and lose their marks.
        """
        apply_moc_transformations(model, cf=True)
        with TemporaryDirectory() as folder:
            description, weights = (Path(folder) / name for name in ("model.xml", "model.bin"))
            openvino.serialize(model, description, weights)
            tree = ElementTree.parse(description)
            _mark(tree.getroot(), wide)
            tree.write(description)
            return self._core.read_model(str(description))


def _mark(network: ElementTree.Element, wide: Collection[str]) -> None:
    """Mark these operators, and what the plug-in computes together with each: bias, sum, ReLU."""
    layers = {layer.get("id"): layer for layer in network.iter("layer")}
    readers: dict[str | None, list[ElementTree.Element]] = defaultdict(list)
    for edge in network.iter("edge"):
        readers[edge.get("from-layer")].append(layers[edge.get("to-layer")])
    for layer in layers.values():
        if _is_weighted(layer) and layer.get("name", "").removesuffix(WITHOUT_BIAS) in wide:
            _keep_float32(layer)
            while len(after := readers[layer.get("id")]) == 1 and not _is_weighted(after[0]):
                layer = after[0]
                _keep_float32(layer)


def _is_weighted(layer: ElementTree.Element) -> bool:
    return layer.get("type") in WEIGHTED


def _keep_float32(layer: ElementTree.Element) -> None:
    marks = layer.find("rt_info")
    if marks is None:
        marks = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, marks)
    ElementTree.SubElement(marks, "attribute", KEEP_FLOAT32)

"""Encoders whose network was exported to ONNX: the same embeddings, without torch.

ONNX Runtime is there in a fiftieth of the time that torch takes to import, which is what a search
for one image waits for. For many images torch is faster where the processor multiplies bfloat16.
"""

from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions, disable_telemetry_events

from retrieval.contracts import Images, Vectors
from retrieval.embedding.onnx_cache import NETWORK, ExportFacts
from retrieval.errors import BadData, BadInput
from retrieval.images import check_framed
from retrieval.runtime.threads import usable_cores

BATCH = 50  # images that pass the network at once
SILENT = 4  # of ONNX Runtime's five levels of logging; what fails is raised


disable_telemetry_events()  # nobody is to be told what is searched for


class Exported:
    """`exported:FOLDER`: the encoder that `Exportable.export` wrote, on the CPU, in float32."""

    def __init__(self, folder: str, device: str = "auto") -> None:
        """Raises BadData for a folder that is none, or damaged; BadInput for another device."""
        if device not in ("auto", "cpu"):
            raise BadInput(f"an exported encoder cannot run on '{device}'; give auto or cpu")
        place = Path(folder).expanduser()
        facts = ExportFacts.read(place)
        self.name = facts.encoder.name
        self.dim = facts.dim
        self.metric = facts.metric
        self.framing = facts.framing
        self.config = dict(facts.encoder.config)
        self.fingerprint = facts.encoder.fingerprint
        options = SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = SILENT
        try:
            self.session = InferenceSession(place / NETWORK, options)
        except Exception as error:  # ONNX Runtime's errors have no type of their own in common
            reason = str(error).splitlines()[0]
            raise BadData(f"cannot read {place / NETWORK} ({reason}); export anew") from None

    def encode(self, images: Images) -> Vectors:
        """The embeddings (n, dim) of images (n, side, side, 3). Raises BadInput for others."""
        check_framed(images, self.framing)
        vectors = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), BATCH):
            batch = np.ascontiguousarray(images[start : start + BATCH])
            vectors[start : start + BATCH] = self.session.run(None, {"images": batch})[0]
        return vectors

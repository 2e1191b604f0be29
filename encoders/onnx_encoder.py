"""Encoders whose network was exported to ONNX: the same embeddings, without torch.

ONNX Runtime is imported in a fiftieth of torch's time, which a search for one image waits for. For
many images torch is faster on processors with bfloat16 instructions.
"""

from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions, disable_telemetry_events

from retrieval.contracts import Images, Vectors
from retrieval.embedding.onnx_cache import NETWORK, ExportFacts
from retrieval.errors import BadData, BadInput
from retrieval.images import check_framed
from retrieval.runtime.threads import usable_cores

IMAGES_PER_BATCH = 50
LOG_FATAL = 4  # level of ONNX Runtime's log; errors are raised too


disable_telemetry_events()  # searches are private


class Exported:
    """`exported:FOLDER`: an encoder that `Exportable.export` wrote, on the CPU, in float32."""

    def __init__(self, folder: str, device: str = "auto") -> None:
        """Open the folder. Raises BadData if it is damaged, BadInput for a GPU."""
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
        options.log_severity_level = LOG_FATAL
        try:
            self.session = InferenceSession(place / NETWORK, options)
        except Exception as error:  # ONNX Runtime's errors share no type
            reason = str(error).splitlines()[0]
            raise BadData(f"cannot read {place / NETWORK} ({reason}); export it again") from None

    def encode(self, images: Images) -> Vectors:
        """Return embeddings (n, dim) of images (n, side, side, 3). Raises BadInput for others."""
        check_framed(images, self.framing)
        vectors = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), IMAGES_PER_BATCH):
            batch = np.ascontiguousarray(images[start : start + IMAGES_PER_BATCH])
            vectors[start : start + IMAGES_PER_BATCH] = self.session.run(None, {"images": batch})[0]
        return vectors

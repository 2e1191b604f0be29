"""The common part of torch encoders: device, batches, precision, weights, fingerprint."""

import copy
import ctypes
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.backends import cudnn

from encoders.write_onnx import write_onnx
from retrieval.choices import choice
from retrieval.contracts import Framing, Images, Json, Metric, Vectors
from retrieval.embedding.runtimes.contract import Arithmetic, Precision
from retrieval.errors import BadData, BadInput
from retrieval.images import check_framed


class TorchEncoder:
    """An encoder around a network that takes images (n, 3, side, side) from 0 to 1.

    The network runs in evaluation mode and in batches: in float16 on a GPU, in bfloat16 on a CPU
    with instructions for it. Its output (n, dim) is returned as float32.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        dim: int,
        metric: Metric | str,
        framing: Framing,
        config: Mapping[str, Json],
        weights: Mapping[str, Tensor],
        device: str,
        batch: int,
        bfloat16: bool = True,
        files: Sequence[Path] = (),
    ) -> None:
        """Move the network to the device and compute the fingerprint.

        config: everything else that embeddings depend on, besides `weights` and `framing`. device:
        auto, cpu or cuda. batch: images per forward pass. bfloat16: whether a CPU may round to it,
        see `Network`. files: see `FromFiles`.
        """
        keep_freed_memory()
        self.name = name
        self.dim = dim
        self.metric = choice(Metric, metric)
        self.framing = framing
        self.config = dict(config)
        self.device = torch_device(device)
        self.batch = batch
        self.bfloat16 = bfloat16
        self.precision = Precision.BALANCED
        self.files = tuple(files)
        self.fingerprint = fingerprint_of(config, framing, weights)
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)

    def encode(self, images: Images) -> Vectors:
        """Return embeddings (n, dim) of images (n, side, side, 3). Raises BadInput for others."""
        check_framed(images, self.framing)
        images = np.require(
            images, requirements=("C", "W")
        )  # torch needs writable, contiguous memory
        vectors = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), self.batch):
            pixels = torch.from_numpy(images[start : start + self.batch])
            output = self.forward(floats(pixels.to(self.device)))
            vectors[start : start + len(pixels)] = output.float().cpu().numpy()
        return vectors

    @property
    def library(self) -> str:
        """Name and version of the library that runs the network."""
        return f"torch {torch.__version__.partition('+')[0]}"

    @property
    def gpu(self) -> str | None:
        """The name of the GPU that runs the network; None on a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None

    @property
    def arithmetic(self) -> Arithmetic:
        """The numbers that most of the network computes with."""
        return arithmetic_of(self.device, self.precision, self.bfloat16)

    def with_precision(self, precision: Precision) -> Self:
        """Return the same encoder, with the arithmetic that it has for this precision."""
        found = copy.copy(self)
        found.precision = choice(Precision, precision)
        return found

    def export(self, path: Path) -> None:
        """Write the network as ONNX, for `encoders.onnx_encoder`. Raises CannotExport."""
        write_onnx(self.network, self.framing.side, path)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """Return the network's output (n, dim) for images (n, 3, side, side) from 0 to 1."""
        exact = self.precision is Precision.EXACT
        no_tf32 = cudnn.flags(enabled=True, allow_tf32=False) if exact else nullcontext()
        with no_tf32, computing_in(self.arithmetic, self.device):
            output: Tensor = self.network(batch)
        if self.device.type == "cuda" and not output.isfinite().all():
            output = self.network(batch)  # an intermediate number overflowed float16
        return output


def torch_device(name: str) -> torch.device:
    """Return the device; `auto` is a GPU if torch sees one. Raises BadInput if it is missing."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device cannot be '{name}'; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("torch sees no GPU; use --device cpu, or auto")
    gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


def floats(images: Tensor) -> Tensor:
    """Convert images (n, h, w, 3) uint8 to floats (n, 3, h, w) from 0 to 1, channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def autocast(device: torch.device) -> torch.autocast:
    """Return the precision of training: bfloat16 on hardware that multiplies it, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def fast_inference(device: torch.device) -> torch.autocast:
    """Return the context of embedding, see `arithmetic_of`."""
    return computing_in(arithmetic_of(device), device)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def arithmetic_of(
    device: torch.device, precision: Precision = Precision.BALANCED, bfloat16: bool = True
) -> Arithmetic:
    """Return the arithmetic of embedding: float16 on a GPU with units for it, else see `autocast`.

    On such a GPU float16 is as fast as bfloat16, and rounds to 11 bits, not to 8. docs/results.md
    shows the effect of each on embeddings. bfloat16: False for float32 on a CPU.
    """
    if choice(Precision, precision) is Precision.EXACT:
        return Arithmetic.FLOAT32
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return Arithmetic.FLOAT16
    elif not bfloat16:
        return Arithmetic.FLOAT32
    return Arithmetic.BFLOAT16 if has_bfloat16(device) else Arithmetic.FLOAT32


def computing_in(arithmetic: Arithmetic, device: torch.device) -> torch.autocast:
    """Return the context in which torch computes in this arithmetic."""
    arithmetic = choice(Arithmetic, arithmetic)
    if arithmetic is Arithmetic.FLOAT32:
        return torch.autocast(device.type, enabled=False)
    dtype = torch.float16 if arithmetic is Arithmetic.FLOAT16 else torch.bfloat16
    return torch.autocast(device.type, dtype)


def fingerprint_of(
    config: Mapping[str, Json], framing: Framing, weights: Mapping[str, Tensor]
) -> str:
    """Return the sha256 of config, framing, and the name, type, shape and bytes of each weight.

    The encoder's name does not count: a folder that was moved still holds the same encoder.
    """
    digest = hashlib.sha256()
    facts = {"config": dict(config), "framing": [*_fields(framing)]}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fields(framing: Framing) -> tuple[int | float | str, ...]:
    fields = framing.side, framing.crop, str(framing.resample)
    return (*fields, "squash") if framing.squash else fields  # no field in earlier fingerprints


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, as float32. Raises BadData for other files."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadData(f"cannot read the weights {path} ({error}); reinstall retr") from None
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in weights.items()
    }


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel.

    Feature maps are so large that glibc would map, zero and unmap each one. On two cores that
    takes a third of the time of inference, and half of the time of training. Does nothing with
    another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names and values of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 << 20)

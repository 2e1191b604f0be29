"""The state of a run on disk: one safetensors file, written whole or not at all.

Tensors are stored bit for bit. The rest of the state (numbers, texts, lists, dictionaries) is JSON
in the file's metadata, with placeholders for the tensors.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from retrieval.errors import BadData
from retrieval.storage.files import write_whole

CHECKPOINT = "checkpoint.safetensors"
STATE = "state"
TENSOR, ITEMS = "tensor", "items"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint. If the disk is full, the earlier one stays whole."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors, ""))
    write_whole(folder / CHECKPOINT, lambda path: path.write_bytes(save(tensors, {STATE: text})))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state in the folder's checkpoint, or None. Raises BadData if it is damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads(file.metadata()[STATE])
        return dict(_unpacked(state, tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadData(f"cannot read {path} ({error}); delete it to train from the start") from None


def _packed(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(value, Tensor):
        name = place or "/"
        tensors[name] = value.detach().contiguous().clone()
        return {TENSOR: name}
    if isinstance(value, dict):  # pairs: JSON would turn number keys into texts
        return {ITEMS: [[k, _packed(v, tensors, f"{place}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(v, tensors, f"{place}/{i}") for i, v in enumerate(value)]
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {k: _unpacked(v, tensors) for k, v in value[ITEMS]}
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    return value

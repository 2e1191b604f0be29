"""The processor of this machine."""

import platform
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")
"""Instructions that the speed of networks depends on, the fastest first."""


@cache
def processor() -> str:
    """Return the processor's name and its fastest instructions: `AMD EPYC (avx2)`."""
    facts: dict[str, str] = {}
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = set(facts.get("flags", "").split())
    best = next((each for each in INSTRUCTIONS if each in flags), None)
    return f"{name} ({best})" if best else name

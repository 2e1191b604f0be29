"""Numeric options: each has a range, and says so; and what `auto` tries."""

from retrieval.errors import BadInput

EFFORTS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896)
"""Candidates of a walk that `auto` tries, each about √2 times the one before."""

PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Lists that `auto` tries to look into."""


def check_graph(m: int, ef_construction: int, ef: int | None, build_threads: int) -> None:
    """Raise BadInput for options of a graph of HNSW that are out of their ranges."""
    check_range("m", m, 2, 1024)
    check_range("ef_construction", ef_construction, 1, 2**31 - 1)
    if ef is not None:
        check_range("ef", ef, 1, 2**31 - 1)
    check_range("build_threads", build_threads, 0, 1024)


def check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    """Raise BadInput unless low ≤ value, and value ≤ high where there is a highest."""
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"option {option} is {value}; give it {allowed}")

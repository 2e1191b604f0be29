"""Ranges of numeric options, and the values that `auto` tries."""

from retrieval.errors import BadInput

EFFORTS = tuple(round(10 * 2 ** (step / 8)) for step in range(53))
"""Numbers of candidates of a walk that `auto` tries: 10 to 905, each about 9% more."""

PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Numbers of probed lists that `auto` tries."""


def check_graph(m: int, ef_construction: int, ef: int | None, build_threads: int) -> None:
    """Raise BadInput for options of a graph of HNSW that are out of their ranges."""
    check_range("m", m, 2, 1024)
    check_range("ef_construction", ef_construction, 1, 2**31 - 1)
    if ef is not None:
        check_range("ef", ef, 1, 2**31 - 1)
    check_range("build_threads", build_threads, 0, 1024)


def check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    """Raise BadInput unless low ≤ value ≤ high; None: no maximum."""
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"option {option} is {value}; give {allowed}")

"""The one rule for numeric options: each has a range, and says so."""

from retrieval.errors import BadInput


def check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    """Raise BadInput unless low ≤ value, and value ≤ high where there is a highest."""
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"option {option} is {value}; give it {allowed}")

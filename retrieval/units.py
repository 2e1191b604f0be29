"""Write and read quantities with units, as people do: 2 min 5 s, 24.4 MB."""

from retrieval.errors import BadInput

BYTES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def duration(seconds: float) -> str:
    """Return the time as text: 0.42 s, 12.3 s, 2 min 5 s."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def size(n_bytes: float) -> str:
    """Return the number of bytes as text: 512 B, 24.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def parse_quantity(option: str, text: str, units: dict[str, float]) -> float:
    """Return the quantity of a text such as `2GB` or `1.5 ms`.

    option: the option's name, for the error. units: factors by the names of units.

    Raises BadInput, with the names of the units, unless the text is a positive number and a unit.
    """
    number = text.rstrip("".join(units) + " ")
    unit = text[len(number) :].strip()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise BadInput(
            f"{option} {text} is not valid; write a number above 0 and its unit, one of "
            f"{', '.join(units)}"
        )
    return value

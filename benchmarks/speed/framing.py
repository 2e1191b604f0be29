"""Compare framing by Pillow and by compiled code: `python -m benchmarks.speed.framing`.

Images of noise in several sizes are framed to 224 × 224, with a crop of 0.875.
"""

import json
import time
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.suite import machine
from retrieval.contracts import Framing
from retrieval.images import frame

FRAMING = Framing(224, 0.875)
SIZES = ((640, 480), (480, 640), (1008, 756), (2000, 1500))
REPEATS = 15
WARM_UP_IMAGES = 3  # Pillow always resizes the first images of a size


def main() -> None:
    """Print milliseconds per image, and their ratio, as JSON."""
    rng = np.random.default_rng(0)
    found = {}
    for width, height in SIZES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(WARM_UP_IMAGES + REPEATS):
            for many, taken in times.items():
                began = time.perf_counter()
                frame(image, FRAMING, many)
                taken.append(1000 * (time.perf_counter() - began))
        pillow, compiled = (median(taken[WARM_UP_IMAGES:]) for taken in times.values())
        found[f"{width} × {height}"] = {
            "pillow_ms": pillow,
            "compiled_ms": compiled,
            "ratio": pillow / compiled,
        }
    print(json.dumps({"sizes": found, "machine": machine.describe()}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""An encoder plug-in, found by the nodes of a cluster on their path, that is slow or fails.

patient:SECONDS takes that long for each batch. patient:nan returns NaN, patient:failing raises an
error, and patient:deadly kills its process.
"""

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np

from encoders.toy import Toy
from retrieval.contracts import Images, Vectors

VERSION = "PATIENT_VERSION"


class Patient(Toy):
    """The toy encoder, slow or failing."""

    def __init__(self, behavior: str, device: str = "auto") -> None:
        super().__init__(device)
        self.name = f"patient:{behavior}"
        self.behavior = behavior
        version = os.environ.get(VERSION, "1")
        self.fingerprint = hashlib.sha256(f"patient {version}".encode()).hexdigest()

    def encode(self, images: Images) -> Vectors:
        """Return the mean colors (n, 3), unless the encoder is one that fails."""
        match self.behavior:
            case "nan":
                return np.full((len(images), 3), np.nan, np.float32)
            case "failing":
                raise ValueError("no\nluck")
            case "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(self.behavior))
        return super().encode(images)


def install(folder: Path) -> None:
    """Put the plug-in into the folder, as pip would."""
    about = folder / "patient-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: patient\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[retr.encoders]\npatient = patient:Patient\n")
    (folder / "patient.py").write_text(Path(__file__).read_text())


# Functions that nodes run as tasks.


def half(number: int) -> float:
    """Return half of an even number. Raises Mismatch for an odd one."""
    from retrieval.errors import Mismatch

    if number % 2:
        raise Mismatch(f"{number} is odd; give an even number")
    return number / 2


def die_once(marker: Path) -> str:
    """Kill the calling process, unless the marker exists already."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name

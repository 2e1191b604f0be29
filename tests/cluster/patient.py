"""A plug-in as anyone may write one, which nodes find on their path: slow, or worse.

patient:SECONDS takes so long for a batch; patient:nan, patient:failing, patient:deadly do what
their names say.
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
    """The toy encoder, with a temper."""

    def __init__(self, temper: str, device: str = "auto") -> None:
        super().__init__(device)
        self.name = f"patient:{temper}"
        self.temper = temper
        version = os.environ.get(VERSION, "1")
        self.fingerprint = hashlib.sha256(f"patient {version}".encode()).hexdigest()

    def encode(self, images: Images) -> Vectors:
        """The mean colours, if all goes well."""
        match self.temper:
            case "nan":
                return np.full((len(images), 3), np.nan, np.float32)
            case "failing":
                raise ValueError("no\nluck")
            case "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(self.temper))
        return super().encode(images)


def install(folder: Path) -> None:
    """Put the plug-in into the folder, as pip would."""
    about = folder / "patient-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: patient\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[retr.encoders]\npatient = patient:Patient\n")
    (folder / "patient.py").write_text(Path(__file__).read_text())


# What the tests have nodes do as tasks.


def half(number: int) -> float:
    """Half of it; of odd numbers it has none."""
    from retrieval.errors import Mismatch

    if number % 2:
        raise Mismatch(f"{number} is odd; give an even number")
    return number / 2


def die_once(marker: Path) -> str:
    """Kill the process that it is called in, unless the marker is there already."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name

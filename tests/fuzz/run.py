"""Fuzz one target with atheris: `python tests/fuzz/run.py TARGET SECONDS`.

It starts from the seeds and the files of corpus/TARGET, and writes inputs to a temporary folder.
Copy inputs that crash into corpus/TARGET: test_corpus.py runs them from then on.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["retrieval", "encoders", "indexers", "PIL", "tomllib"]):
    import targets

HERE = Path(__file__).parent


def main() -> None:
    """Fuzz the target; a fault ends it with exit code 77 and a file `crash-…`."""
    name, seconds = sys.argv[1], sys.argv[2]
    found = Path(tempfile.mkdtemp(prefix=f"retr-fuzz-{name}-"))
    for number, seed in enumerate(targets.seeds(name)):
        (found / f"seed-{number}").write_bytes(seed)
    kept = HERE / "corpus" / name
    options = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=4096",
        "-timeout=20",
        "-max_len=65536",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/",
    ]
    folders = [str(found), *([str(kept)] if kept.is_dir() else [])]
    atheris.Setup([sys.argv[0], *options, *folders], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

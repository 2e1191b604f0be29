"""Fuzzes one target with atheris: `python tests/fuzz/run.py TARGET SECONDS`.

It begins with the seeds and what lies in corpus/TARGET, and keeps what it finds in a folder of its
own: put what crashed into corpus/TARGET, where test_corpus.py has it for good.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["retrieval", "encoders", "indexers", "PIL", "tomllib"]):
    import targets

HERE = Path(__file__).parent


def main() -> None:
    """Fuzz; exit code 77 and a file `crash-…` for what was found."""
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

"""The test files that `make test-fast` runs for a module, and its limit of time."""

import subprocess
import sys
from pathlib import Path

import pytest
import selection


@pytest.mark.slow
def test_each_module_has_a_few_test_files() -> None:
    for module in selection.modules():
        files = selection.selected(module)
        assert 1 <= len(files) <= selection.MAX_FILES, module
        assert all((selection.ROOT / file).is_file() for file in files)


def test_no_module_selects_more_than_a_tenth_of_the_test_files() -> None:
    assert len(selection.tests()) >= 10 * selection.MAX_FILES


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("retrieval/quality/significance.py", "tests/unit/quality/test_significance.py"),
        ("retrieval/images/pixels/decoding.py", "tests/unit/images/test_images_decoding.py"),
        ("indexers/ivf.py", "tests/unit/indexers/test_indexers_ivf.py"),
        ("encoders/training/optimization/losses.py", "tests/unit/training/test_training_losses.py"),
        ("cli/commands/search.py", "tests/cli/search/test_cli_search.py"),
        ("cli/commands/evaluate.py", "tests/cli/quality/test_cli_eval.py"),
    ],
)
def test_files_with_the_name_of_the_module_come_first(module: str, test: str) -> None:
    assert str(selection.selected(Path(module))[0]) == test


def test_a_path_without_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retrieval/nothing\.py is not a module of retr"):
        selection.selected(Path("retrieval/nothing.py"))


def test_imported_submodules_count(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("import cli.main\ndef f():\n    from retrieval import errors\nimport numpy\n")
    assert selection.imports(file) == {"cli.main", "retrieval", "retrieval.errors"}


def test_tests_after_the_given_seconds_are_skipped() -> None:
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "--seconds"]
    command = [sys.executable, "-m", "pytest", *options, "0", "tests/unit/storage/test_names.py"]
    done = subprocess.run(command, cwd=selection.ROOT, capture_output=True, text=True, check=True)
    assert "not run within 0 s; run make test" in done.stdout
    assert " passed" not in done.stdout

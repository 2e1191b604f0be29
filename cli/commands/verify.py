"""`retr verify`: check a folder for damage."""

from cli.command import command
from cli.options import Folder
from cli.output import Output, one_line, plural


@command()
def verify(output: Output, folder: Folder) -> None:
    """Check that a folder is complete and undamaged.

    The folder holds embeddings, an index or an encoder. Checksums, columns, counts and numbers are
    checked. Each problem is printed, and the exit code is 2 if there is any.

    Example: retr verify .retr/embeddings/cifar10-train-siamese-1a2b3c4d
    """
    import typer

    from retrieval.inspection import verify
    from retrieval.storage.places import place_of

    report = verify(place_of(folder))
    for problem in report.problems:
        output.say(f"problem: {problem}")
    if not report.problems:
        output.say(
            f"{folder} ({report.kind}) is intact: "
            + (f"{plural(report.rows, 'row')}, " if report.rows else "")
            + plural(report.files, "file")
        )
    output.document(
        {
            "kind": str(report.kind),
            "ok": not report.problems,
            "rows": report.rows,
            "files": report.files,
            "problems": list(report.problems),
        }
    )
    if report.problems:
        if not output.for_people and not output.json:
            print_problem(report.problems[0])
        raise typer.Exit(2)


def print_problem(problem: str) -> None:
    """Print an error to stderr, as --quiet allows."""
    import sys

    print(f"error: {one_line(problem)}", file=sys.stderr)

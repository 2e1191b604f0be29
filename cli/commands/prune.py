"""`retr prune`: delete what nothing refers to."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import command
from cli.output import Output, plural
from retrieval.units import size

if TYPE_CHECKING:
    from retrieval.workspace import Workspace

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")
]


@command()
def prune(output: Output, workspace: "Workspace", dry_run: DryRun = False) -> None:
    """Delete folders of the workspace that nothing refers to, such as indices without embeddings.

    Embeddings, images, and what the next command would use are never deleted. 'retr list' shows the
    folders of embeddings, to delete those that you do not need.

    Example: retr prune --dry-run
    """
    from retrieval import housekeeping
    from retrieval.workspace import workspaces

    act = housekeeping.leftovers if dry_run else housekeeping.prune
    found = [each for of in workspaces(workspace) for each in act(of)]
    for each in found:
        output.say(f"{each.folder}: {each.reason}, {size(each.n_bytes)}")
    verb = "would be deleted" if dry_run else "deleted"
    total = size(sum(each.n_bytes for each in found))
    output.say(f"{plural(len(found), 'folder')} {verb}, {total}" if found else "nothing to delete")
    output.document({"deleted": [each.to_json() for each in found], "dry_run": dry_run})

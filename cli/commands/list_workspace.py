"""`retr list`: what the workspace holds."""

from typing import TYPE_CHECKING

from cli.command import command
from cli.output import Output, plural
from retrieval.units import size

if TYPE_CHECKING:
    from retrieval.workspace import Workspace


@command()
def list_workspace(output: Output, workspace: "Workspace") -> None:
    """List the embeddings and indices of the workspace, and of collections of 'retr search --in'.

    Example: retr list
    """
    from retrieval.housekeeping import entries
    from retrieval.workspace import workspaces

    found = [entry for each in workspaces(workspace) for entry in entries(each)]
    output.table(
        ("kind", "made with", "source", "rows", "size", "folder"),
        [
            (
                each.kind,
                each.made_with or "–",
                each.source or "–",
                f"{each.rows:,}",
                size(each.n_bytes),
                str(each.folder),
            )
            for each in found
        ],
        left=3,
    )
    for each in found:
        if each.note:
            output.say(f"{each.folder}: {each.note}")
    output.say(f"{plural(len(found), 'folder')}, {size(sum(each.n_bytes for each in found))}")
    output.document([each.to_json() for each in found])

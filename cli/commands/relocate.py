"""`retr relocate`: say where images are after their folder was moved."""

from typing import Annotated

import typer

from cli.command import command
from cli.output import Output

FolderArgument = Annotated[
    str, typer.Argument(metavar="DIR", help="Folder of embeddings or of an index.")
]

RootArgument = Annotated[
    str,
    typer.Argument(
        metavar="ROOT",
        help="Folder where the images are now. If the images of an index are from several folders, "
        "OLD=NEW.",
    ),
]


@command()
def relocate(output: Output, folder: FolderArgument, root: RootArgument) -> None:
    """Say where the images of embeddings or of an index are after their folder was moved.

    Nothing is encoded again. For a single command, use its option --root.

    Example: retr relocate photos-index /media/disk/photos
    """
    from retrieval.errors import BadInput
    from retrieval.index.update import relocate_index
    from retrieval.inspection import Kind, kind_of
    from retrieval.storage.places import place_of
    from retrieval.storage.roots import parsed_root
    from retrieval.storage.sets.shard_writer import relocate_embeddings

    place = place_of(folder)
    old, new = parsed_root(root)
    match kind_of(place):
        case Kind.INDEX:
            relocate_index(place, old, new)
        case Kind.EMBEDDINGS:
            relocate_embeddings(place, new)
        case Kind.ENCODER:
            raise BadInput(f"{folder} is an encoder; name embeddings or an index")
    output.say(f"the images of {folder} are below {new}")
    output.document({"folder": str(place), "root": new})

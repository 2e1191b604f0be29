"""The life of a collection of photographs, for `retr demo photos`."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import Output, plural
from retrieval.units import duration

if TYPE_CHECKING:
    from PIL.Image import Image

    from retrieval.collection import EncodedCollection
    from retrieval.contracts import Json
    from retrieval.workspace import Workspace

SIDE = 240  # pixels of the square pieces of a photograph
STEP = 80  # pixels between pieces
WHERE = "taken between 2023 and 2024-05-10 and width = 240"


def show_collection(output: Output, out: Path, encoder: str | None, device: str) -> "Json":
    """Make a folder of photographs, search it, change it, and search it again; return the counts.

    The photographs are pieces of scikit-learn's two sample images. Raises the errors of
    `encoded_collection`.
    """
    from retrieval.storage.files import made_folder
    from retrieval.workspace import Workspace

    photos, workspace = out / "photos", Workspace(out / "state")
    for folder in (photos, workspace.folder):
        shutil.rmtree(folder, ignore_errors=True)
    made_folder(out)
    spare, query = _write_photos(photos), out / "query.jpg"
    spare.pop().save(query)

    output.say(f"1. A folder of photographs: {photos}")
    first = _searched(output, photos, workspace, query, encoder, device)
    output.say("\n2. Nothing has changed: the second search encodes nothing")
    second = _searched(output, photos, workspace, query, encoder, device)
    output.say("\n3. Files are added, deleted, renamed and changed")
    _change(photos, spare)
    third = _searched(output, photos, workspace, query, encoder, device)
    output.say("\n4. The whole folder is renamed, and so its images have new paths")
    (photos / "china").rename(photos / "travel")
    fourth = _searched(output, photos, workspace, query, encoder, device)
    output.say(f"\n5. Only photographs that match: {WHERE}")
    fifth = _searched(output, photos, workspace, query, encoder, device, WHERE)
    output.say(f"\ntry: retr search {query} --in {photos} --workspace {workspace.folder}")
    return {"photos": str(photos), "searches": [first, second, third, fourth, fifth]}


def _write_photos(folder: Path) -> "list[Image]":
    """Write pieces of two photographs into a folder for each; return some that are not written."""
    from PIL import ExifTags, Image
    from sklearn.datasets import load_sample_images

    spare: list[Image.Image] = []
    years = {"china": 2023, "flower": 2024}
    for (name, year), pixels in zip(years.items(), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        photo = Image.fromarray(pixels)
        corners = [
            (left, top)
            for top in range(0, photo.height - SIDE, STEP)
            for left in range(0, photo.width - SIDE, STEP)
        ]
        for number, (left, top) in enumerate(corners):
            piece = photo.crop((left, top, left + SIDE, top + SIDE))
            if number % 5 == 2:
                spare.append(piece)
            else:
                exif = Image.Exif()
                exif[ExifTags.Base.DateTime] = f"{year}:05:{number + 1:02} 12:00:00"
                piece.save(folder / name / f"IMG_{number:04}.jpg", exif=exif)
    return spare


def _change(folder: Path, spare: "list[Image]") -> None:
    files = sorted(folder.rglob("*.jpg"))
    files[0].unlink()
    files[1].rename(files[1].with_name("renamed.jpg"))
    spare[0].save(files[2])
    for number, photo in enumerate(spare[1:3]):
        photo.save(folder / f"new {number}.jpg")


def _searched(
    output: Output,
    photos: Path,
    workspace: "Workspace",
    query: Path,
    encoder: str | None,
    device: str,
    where: str | None = None,
) -> "dict[str, Json]":
    """Bring the collection up to date, search it, and print both."""
    from retrieval.collection import encoded_collection, indexed_collection
    from retrieval.images import open_source
    from retrieval.index.searching import Searcher

    started = time.perf_counter()
    with output.progress("encode", "image") as show:
        source = open_source(str(photos), note=output.warn)
        state = encoded_collection(source, workspace, encoder, device, output.hint, show)
        index = indexed_collection(state.embeddings, workspace)
    seconds = time.perf_counter() - started
    counts = _counts(state)
    said = ", ".join(f"{what} {number}" for what, number in counts.items() if number)
    output.say(f"   {plural(len(state.embeddings), 'image')}: {said}; {duration(seconds)}")
    searcher = Searcher.open(index, encoder=state.encoder, device=device)
    hits = searcher.search_images([query], 3, where)[0]
    columns = searcher.columns([hit.id for hit in hits], ["taken"])
    for hit, values in zip(hits, columns, strict=True):
        taken = "" if where is None else f"  {values['taken']}"
        output.say(f"   {hit.rank}  {hit.distance:.4f}  {hit.id}{taken}")
    found: list[Json] = [hit.id for hit in hits]
    return {**counts, "seconds": seconds, "found": found}


def _counts(state: "EncodedCollection") -> "dict[str, Json]":
    done = state.outcome
    if done is None:
        return {"encoded": 0, "kept": len(state.embeddings), "removed": 0, "renamed": 0}
    return {
        "encoded": done.encoded,
        "kept": done.kept,
        "removed": done.removed,
        "renamed": done.renamed,
    }

"""`retr info`: describe a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from cli.command import command
from cli.options import Folder
from cli.output import Output, plural
from retrieval.units import duration, size

if TYPE_CHECKING:
    from retrieval.contracts import Json as JsonValue
    from retrieval.storage.places import Place


@command()
def info(output: Output, folder: Folder) -> None:
    """Describe an embeddings, index or encoder folder.

    Example: retr info .retr/indices/*
    """
    from retrieval.inspection import Kind, kind_of
    from retrieval.storage.places import place_of

    place = place_of(folder)
    match kind_of(place):
        case Kind.EMBEDDINGS:
            output.document(_of_embeddings(output, place))
        case Kind.INDEX:
            output.document(_of_index(output, place))
        case Kind.ENCODER:
            output.document(_of_encoder(output, Path(folder)))


def _of_embeddings(output: Output, folder: "Place") -> "dict[str, JsonValue]":
    from dataclasses import asdict

    from retrieval.images.folders.listing import said_of
    from retrieval.storage.sets.embeddings import open_embeddings
    from retrieval.storage.sets.manifest import Manifest

    manifest = Manifest.read(folder)
    facts = manifest.facts
    n_bytes = sum(shard.bytes for shard in manifest.shards)
    output.say(f"embeddings: {plural(manifest.rows, 'row')} of {facts.dim} × {facts.dtype}")
    output.say(f"  source    {facts.source.name}, {plural(facts.source.images, 'image')}")
    output.say(f"  encoder   {facts.encoder.name} ({facts.encoder.fingerprint[:8]})")
    output.say(f"  metric    {facts.metric}")
    output.say(f"  files     {plural(len(manifest.shards), 'shard')}, {size(n_bytes)}")
    folders = f", {plural(manifest.skipped_folders, 'folder')}" if manifest.skipped_folders else ""
    output.say(f"  skipped   {plural(manifest.skipped, 'image')}{folders}")
    for each in manifest.made_by:
        output.say(f"  made by   {each}")
    if manifest.passed_over:
        output.say(f"  {said_of(manifest.passed_over)}")
    columns = open_embeddings(folder).columns().column_names if manifest.complete else []
    if columns:
        output.say(f"  columns   {', '.join(columns)}")
    assigned = dict(open_embeddings(folder).assigned()) if manifest.complete else {}
    if assigned:
        names = ", ".join(map(str, cast("list[str]", assigned["with"])))
        output.say(f"  labels    by 'retr label', from the words {names}")
    output.say(
        f"  complete  {'yes' if manifest.complete else 'no: run the same retr encode again'}"
    )
    return {
        "kind": "embeddings",
        **facts.to_json(),
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "skipped": manifest.skipped,
        "skipped_folders": manifest.skipped_folders,
        "passed_over": dict(manifest.passed_over),
        "complete": manifest.complete,
        "made_by": [asdict(each) for each in manifest.made_by],
        "columns": columns,
        "assigned": assigned or None,
        "size_bytes": n_bytes,
    }


def _of_index(output: Output, folder: "Place") -> "dict[str, JsonValue]":
    from dataclasses import asdict

    from retrieval.index.folder import IndexFacts, columns_of

    facts = IndexFacts.read(folder)
    columns = ["id", "label", "path", *columns_of(folder, facts).names]
    n_bytes = facts.size_in(folder)
    settings = ", ".join(f"{name} {value}" for name, value in facts.options.items())
    gone = f"; {facts.deleted:,} were deleted" if facts.deleted else ""
    output.say(f"index: {plural(facts.rows, 'row')} of {facts.dim} dimensions{gone}")
    output.say(f"  backend   {facts.backend}" + (f" ({settings})" if settings else ""))
    output.say(f"  metric    {facts.metric}")
    output.say(f"  encoder   {facts.encoder.name} ({facts.encoder.fingerprint[:8]})")
    files = ", ".join(sorted(facts.files)) or plural(len(facts.parts), "part")
    output.say(f"  files     {files}: {size(n_bytes)}")
    output.say(f"  columns   {', '.join(columns)}")
    for name, value in facts.details.items():
        output.say(f"  {name:<9} {value}")
    return {"kind": "index", **asdict(facts), "columns": columns, "size_bytes": n_bytes}


def _of_encoder(output: Output, folder: Path) -> "dict[str, JsonValue]":
    from dataclasses import asdict

    from retrieval.storage.cards import WEIGHTS, Card

    card = Card.read(folder)
    facts = card.training
    n_bytes = card.check_weights(folder).stat().st_size
    network = ", ".join(f"{name} {value}" for name, value in card.network.items())
    scored = ", ".join(f"{name} {value}" for name, value in facts.metrics.items())
    output.say(f"encoder: {card.encoder} of {card.dim} dimensions")
    output.say(f"  network   {network}")
    output.say(f"  metric    {card.metric}")
    output.say(f"  classes   {', '.join(card.classes)}")
    output.say(f"  trained   on {facts.data['images']} images of {facts.data['source']}")
    output.say(f"            in {duration(60 * facts.minutes)}, seed {facts.seed}; {facts.machine}")
    output.say(f"  scored    {scored}")
    output.say(f"  files     {WEIGHTS}: {size(n_bytes)}")
    return {"kind": "encoder", **asdict(card), "size_bytes": n_bytes}

"""Folders that do not belong together: encoders, dimensions, labels and kinds."""

from dataclasses import replace

import numpy as np
import pytest

from retrieval import open_embeddings
from retrieval.errors import BadInput
from retrieval.storage.sets.manifest import Dtype, EncoderFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from tests.cli.damage import Copied, edit_json, make_embeddings
from tests.cli.gallery import Gallery
from tests.cli.running import Retr


def test_an_index_of_another_encoder_is_not_searched(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    folder = copied(gallery.index())
    other = {"name": "siamese", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    message = retr.refused("search", gallery.image, "--index", folder, "--encoder", "toy")
    assert "siamese (ab12cd34)" in message
    assert "toy (" in message


def test_an_index_of_another_version_of_the_encoder_is_not_searched(
    retr: Retr, gallery: Gallery, copied: Copied
) -> None:
    folder = copied(gallery.index())
    other = {"name": "toy", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    message = retr.refused("search", gallery.image, "--index", folder)
    assert "toy (ab12cd34)" in message
    assert "encode and index again" in message


def test_missing_encoder_of_an_index_is_named(retr: Retr, gallery: Gallery, copied: Copied) -> None:
    folder = copied(gallery.index())
    other = {"name": "oracle", "fingerprint": "ab12cd34" * 8, "config": {}}
    edit_json(folder / "index.json", encoder=other)
    assert "unknown encoder 'oracle'" in retr.refused("search", gallery.image, "--index", folder)


def test_sets_of_two_encoders_are_not_mixed(retr: Retr, gallery: Gallery) -> None:
    other = EncoderFacts("oracle", "ab12cd34" * 8)
    folder = make_embeddings(retr.cwd / "other", np.ones((4, 3), np.float32), other)
    for arguments in (
        ("eval", "--queries", folder, "--database", gallery.embeddings),
        ("eval", "--queries", gallery.embeddings, "--database", folder),
        ("index", folder, gallery.embeddings, "--out", "index"),
    ):
        message = retr.refused(*arguments)
        assert "oracle (ab12cd34)" in message
        assert "toy (" in message


def test_sets_of_two_dimensions_are_not_mixed(retr: Retr, gallery: Gallery) -> None:
    folder = make_embeddings(retr.cwd / "wide", np.ones((4, 5), np.float32))
    for sets in ((folder, gallery.embeddings), (gallery.embeddings, folder)):
        message = retr.refused("index", *sets, "--out", "index")
        assert "3" in message
        assert "5" in message


def test_queries_of_another_dimension_are_not_evaluated(retr: Retr) -> None:
    wide = make_embeddings(retr.cwd / "wide", np.ones((4, 5), np.float32))
    narrow = make_embeddings(retr.cwd / "narrow", np.ones((4, 3), np.float32))
    message = retr.refused("eval", "--queries", wide, "--database", narrow)
    assert "3" in message
    assert "5" in message


def test_an_index_of_other_embeddings_is_not_evaluated(retr: Retr, gallery: Gallery) -> None:
    other = make_embeddings(retr.cwd / "other", np.ones((60, 3), np.float32))
    message = retr.refused(
        "eval", "--queries", other, "--database", other, "--index", gallery.index()
    )
    assert "was not built from" in message


def test_evaluation_without_common_labels_is_refused(retr: Retr, gallery: Gallery) -> None:
    other = make_embeddings(retr.cwd / "other", np.ones((4, 3), np.float32))
    message = retr.refused("eval", "--queries", other, "--database", gallery.embeddings)
    assert "none of 4 queries" in message


def test_the_same_embeddings_twice_are_not_indexed(retr: Retr, gallery: Gallery) -> None:
    message = retr.refused("index", gallery.embeddings, gallery.embeddings, "--out", "index")
    assert "duplicate id" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["index", "{exact}", "--out", "index"], "exact is not an embeddings folder"),
        (["search", "{image}", "--index", "{embeddings}"], "embeddings is not an index"),
        (
            ["eval", "--queries", "{exact}", "--database", "{embeddings}"],
            "exact is not an embeddings",
        ),
        (["info", "{images}"], "images is neither embeddings"),
        (["verify", "{images}"], "images is neither embeddings"),
        (["verify", "{image}"], "7.png is neither embeddings"),
        (["info", "nowhere"], "nowhere not found"),
        (["index", "nowhere"], "nowhere is not an embeddings folder"),
        (["search", "{image}", "--index", "nowhere"], "nowhere is not an index"),
    ],
)
def test_a_folder_of_the_wrong_kind_is_named(
    retr: Retr, gallery: Gallery, arguments: list[str], said: str
) -> None:
    places = {
        "image": gallery.image,
        "images": gallery.images,
        "embeddings": gallery.embeddings,
        "exact": gallery.index(),
    }
    assert said in retr.refused(*(argument.format(**places) for argument in arguments))


def test_every_fact_of_a_run_is_compared_before_resuming(gallery: Gallery, copied: Copied) -> None:
    """A run does not continue shards of a run with another fact."""
    folder = copied(gallery.embeddings)
    facts = open_embeddings(folder).facts
    assert ShardWriter(folder, facts).manifest.complete
    for other in (
        replace(facts, dtype=Dtype.FLOAT16),
        replace(facts, shard_images=50),
        replace(facts, source=replace(facts.source, name="other")),
        replace(facts, source=replace(facts.source, first_of="1" * 64)),
        replace(facts, source=replace(facts.source, fingerprint="1" * 64, root=None)),
        replace(facts, encoder=replace(facts.encoder, fingerprint="1" * 64)),
        replace(facts, encoder=replace(facts.encoder, config={"mirror": True})),
    ):
        with pytest.raises(BadInput, match="holds other embeddings"):
            ShardWriter(folder, other)

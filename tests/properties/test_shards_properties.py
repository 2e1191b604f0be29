"""Shards and indices return the rows that were written."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrieval.contracts import Metric
from retrieval.index.build import build_index
from retrieval.index.folder import open_index
from retrieval.inspection import verify
from retrieval.storage.sets.embeddings import open_embeddings
from retrieval.storage.sets.manifest import Dtype, EncoderFacts, Facts, Skipped, SourceFacts
from retrieval.storage.sets.shard_writer import ShardWriter
from tests.examples import examples

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(-1e4, 1e4, width=16)


@st.composite
def sets(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    rows = draw(st.integers(1, 12))
    dim = draw(st.integers(1, 5))
    return (
        draw(st.lists(text, min_size=rows, max_size=rows, unique=True)),
        draw(st.lists(st.none() | text, min_size=rows, max_size=rows)),
        draw(st.lists(st.none() | text, min_size=rows, max_size=rows)),
        draw(hnp.arrays(np.float32, (rows, dim), elements=numbers)),
        draw(st.sampled_from(Dtype)),
        draw(st.sampled_from(Metric)),
        draw(st.integers(1, 5)),
    )


@settings(max_examples=examples(60), deadline=None)
@given(sets())
def test_rows_are_read_as_they_were_written(drawn) -> None:  # type: ignore[no-untyped-def]
    ids, labels, paths, vectors, dtype, metric, shard_images = drawn
    facts = Facts(
        EncoderFacts("some:one", "f" * 64, {"list": [1, None, "ü"]}),
        vectors.shape[1],
        dtype,
        metric,
        SourceFacts("a source", "e" * 64, len(ids)),
        shard_images,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        for start in range(0, len(ids), shard_images):
            writer = ShardWriter(folder, facts)  # a new writer resumes the run
            assert writer.position == start
            at = slice(start, start + shard_images)
            writer.write(ids[at], labels[at], paths[at], vectors[at], [Skipped("x", "y")])
        ShardWriter(folder, facts).finish()

        embeddings = open_embeddings(folder)
        rows, read = embeddings.read()
        assert embeddings.facts == facts
        assert rows.to_pydict() == {"id": ids, "label": labels, "path": paths}
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, vectors)  # the drawn numbers are exact in float16
        assert embeddings.manifest.skipped == len(embeddings.manifest.shards)
        assert verify(folder).problems == ()

        # The index holds the rows without the embeddings.
        build_index([embeddings], "exact", Path(temporary) / "index")
        opened = open_index(Path(temporary) / "index")
        assert opened.rows.equals(rows)
        assert opened.facts.metric is metric
        assert opened.facts.encoder == facts.encoder

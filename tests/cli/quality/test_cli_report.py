"""`retr report`: one self-contained file, with the numbers of `retr eval`."""

import re
from pathlib import Path

import pytest

from retrieval import open_encoder
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source
from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr


@pytest.fixture
def queries(retr: Retr, gallery: Gallery) -> Path:
    """Write embeddings of other pictures with the gallery's labels."""
    for group, label in enumerate(("blue", "green", "red")):
        for number in range(4):
            place = retr.cwd / "asked" / label / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            save(place, seed=900 + 10 * group + number)
    encode_source(open_source(str(retr.cwd / "asked")), open_encoder("toy"), retr.cwd / "queries")
    return retr.cwd / "queries"


def test_report_is_one_self_contained_file(retr: Retr, gallery: Gallery, queries: Path) -> None:
    sides = ("--queries", queries, "--database", gallery.embeddings)
    assert retr.json("report", *sides)["out"] == "report.html"
    text = (retr.cwd / "report.html").read_text()
    measured = retr.json("eval", *sides)
    assert f"{measured['map']:.4f}" in text
    for label in ("blue", "green", "red"):
        assert f"<td>{label}</td>" in text
        assert f"{measured['per_class'][label]['map']:.4f}" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(each.startswith(("data:image/", "#")) for each in sources)
    assert not re.search(r"url\(|@import|<script", text)
    assert sum(each.startswith("data:image/png") for each in sources) > 12 * 5, "pictures"
    assert "retr encode" in text and "--encoder toy" in text


def test_labels_are_escaped_in_the_report(retr: Retr, gallery: Gallery) -> None:
    for label in ("<b>bold", "plain"):
        for number in range(4):
            place = retr.cwd / "odd" / label / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            save(place, seed=number)
    encode_source(open_source(str(retr.cwd / "odd")), open_encoder("toy"), retr.cwd / "odd-vectors")
    retr("report", "--queries", "odd-vectors", "--database", "odd-vectors", "--out", "odd.html")
    text = (retr.cwd / "odd.html").read_text()
    assert "&lt;b&gt;bold" in text and "<b>bold" not in text


def test_report_includes_a_bench(retr: Retr, gallery: Gallery, queries: Path) -> None:
    sides = ("--queries", queries, "--database", gallery.embeddings)
    retr("bench", *sides, "--backend", "exact", "--out", "bench")
    retr("report", *sides, "--bench", "bench")
    text = (retr.cwd / "report.html").read_text()
    assert "12 queries against 60 vectors of 3 dimensions" in text
    assert '<th scope="col">recall@1</th>' in text and "<td>exact *</td>" in text
    (retr.cwd / "bench" / "bench.md").unlink()  # the report reads bench.json alone
    retr("report", *sides, "--bench", "bench", "--out", "again.html")
    assert (retr.cwd / "again.html").read_text().count("<td>exact *</td>") == 1


def test_bad_input_of_report_is_refused(retr: Retr, gallery: Gallery, queries: Path) -> None:
    sides = ("--queries", queries, "--database", gallery.embeddings)
    assert "unknown method 'tsne'" in retr.refused("report", *sides, "--method", "tsne")
    assert "retr bench --out" in retr.refused("report", *sides, "--bench", ".")
    nowhere = retr.refused("report", *sides, "--out", "none/report.html", leaves=True)
    assert "cannot write" in nowhere
    assert "run 'retr encode --split test' first" in retr.refused("report")

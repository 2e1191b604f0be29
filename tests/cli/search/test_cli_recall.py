"""The recall that `retr index` measures, and its warning of poor recall."""

from pathlib import Path

from benchmarks.speed.scale import draw
from tests.cli.running import Retr
from tests.made import embeddings


def test_index_warns_only_of_poor_recall(tmp_path: Path) -> None:
    vectors = draw(4200, seed=2)
    embeddings(tmp_path / "e", vectors[:4000], shard_rows=2000)
    embeddings(tmp_path / "more", vectors[4000:])
    retr = Retr(tmp_path)
    good = retr.json("index", "e", "--backend", "ivf", "--out", "i")
    assert good["details"]["recall_at_10"] > 0.95
    assert good["options"]["n_probe"] > 32
    poor = retr("index", "e", "--backend", "ivf", "--set", "n_probe=1", "--out", "i", "--json")
    recall = poor.document["details"]["recall_at_10"]
    assert recall < 0.5
    expected = (
        f"warning: recall@10 is {recall:.3f} on a sample of the index's rows; raise n_probe with "
        "--set, here or at search, or build with --backend auto\n"
    )
    assert poor.err == expected
    grown = retr("index", "more", "--add", "--out", "i")
    assert grown.err.startswith("warning: recall@10 is 0.") and grown.err.count("\n") == 1
    parts = retr(
        "index", "e", "--backend", "ivf", "--set", "n_probe=1", "--parts", "2", "--out", "p"
    )
    assert parts.err.startswith("warning: recall@10 is 0.") and parts.err.count("\n") == 1
    auto = retr.json("index", "e", "--backend", "auto", "--out", "a")
    assert auto["details"]["recall_at_10"] >= 0.9
    quiet = retr("index", "e", "--backend", "ivf", "--set", "n_probe=1", "--out", "i", "--quiet")
    assert (quiet.out, quiet.err) == ("", "")

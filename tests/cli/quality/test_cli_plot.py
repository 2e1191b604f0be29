"""`retr plot`: plots of embeddings, of trainings and of pairs."""

import pytest

from tests.cli.colors import color_photos
from tests.cli.gallery import Gallery
from tests.cli.running import Retr


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        ([], "png"),
        (["--method", "scatter", "--dims", "3"], "png"),
        (["--method", "scatter"], "png"),
        ([], "svg"),
    ],
)
def test_embeddings_are_plotted(
    retr: Retr, gallery: Gallery, arguments: list[str], ending: str
) -> None:
    found = retr.json("plot", gallery.embeddings, *arguments, "--out", f"map.{ending}")
    assert found["out"] == f"map.{ending}"
    assert (retr.cwd / f"map.{ending}").stat().st_size > 5_000


def test_plot_uses_the_last_embeddings_by_default(retr: Retr) -> None:
    assert "run 'retr encode' first, or name one with WHAT" in retr.refused("plot")
    color_photos(retr.cwd / "photos")
    retr("encode", "photos", "--encoder", "toy")
    assert retr.json("plot") == {"out": "plot.png", "kind": "pca"}
    retr("encode", "digits", "--split", "test", "--encoder", "toy")
    retr("plot", "--out", "last.svg")
    assert "of digits/test by toy" in (retr.cwd / "last.svg").read_text()


def test_curves_are_plotted_from_a_log(retr: Retr) -> None:
    (retr.cwd / "log.csv").write_text(
        "epoch,loss,seconds,images_per_second,scored_on,map,precision_at_10,knn_accuracy\n"
        '1,2.5,1.0,10.0,"1,000 held-out images",0.2,0.3,0.4\n'
        '2,2.0,1.0,10.0,"1,000 held-out images",0.3,0.4,0.5\n'
    )
    assert retr.json("plot", "log.csv") == {"out": "plot.png", "kind": "curves"}
    with (retr.cwd / "log.csv").open("a") as file:
        file.write(
            '3,1.5,1.0,10.0,"1,000 held-out images",,,\n'
        )  # a line for images without labels
    assert retr.json("plot", "log.csv")["kind"] == "curves"
    (retr.cwd / "log.csv").write_text("a,b\n1,2\n")
    assert "log.csv is not a training log" in retr.refused("plot", "log.csv", leaves=True)


@pytest.mark.parametrize("text", ["{}", '{"roc": [1]}', '{"roc": {"joint": [1, 2]}}'])
def test_damaged_pairs_json_is_named(retr: Retr, text: str) -> None:
    (retr.cwd / "pairs.json").write_text(text)
    assert "pairs.json has no ROC" in retr.refused("plot", "pairs.json", leaves=True)

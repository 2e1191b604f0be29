"""Collections: `retr search --in`, `retr list`, `retr prune`, `retr relocate` and `--root`."""

import shutil
from pathlib import Path

import pytest

from tests.cli.gallery import Gallery
from tests.cli.pictures import save
from tests.cli.running import Retr, snapshot

IN = ("--in", "photos", "--encoder", "toy")


@pytest.fixture
def collection(tmp_path: Path) -> Retr:
    """Return the command beside a folder of photographs, with a user's data folder of its own."""
    for number in range(12):
        save(tmp_path / "photos" / f"{number % 2}" / f"{number}.png", seed=number)
    return Retr(tmp_path, {"XDG_DATA_HOME": str(tmp_path / "data"), "RETR_WORKSPACE": ""})


def ids(document: list[dict[str, list[dict[str, str]]]]) -> list[str]:
    return [hit["id"] for hit in document[0]["hits"]]


def test_a_folder_is_searched_with_one_command(collection: Retr) -> None:
    before = snapshot(collection.cwd / "photos")
    first = collection.json("search", "photos/0/4.png", *IN, "-k", 3)
    assert ids(first)[0] == "0/4.png"
    assert snapshot(collection.cwd / "photos") == before
    assert not (collection.cwd / ".retr").exists()
    made = snapshot(collection.cwd / "data")
    assert collection.json("search", "photos/0/4.png", *IN, "-k", 3) == first
    assert snapshot(collection.cwd / "data") == made


def test_a_collection_follows_its_folder(collection: Retr) -> None:
    collection.json("search", "photos/0/4.png", *IN)
    (collection.cwd / "photos" / "0" / "4.png").rename(collection.cwd / "photos" / "b.png")
    (collection.cwd / "photos" / "1" / "3.png").unlink()
    save(collection.cwd / "photos" / "new.png", seed=50)
    found = collection.json("search", "photos/b.png", *IN, "-k", 12)
    assert ids(found)[0] == "b.png"
    assert sorted(ids(found)) == sorted(
        [f"{n % 2}/{n}.png" for n in range(12) if n not in (3, 4)] + ["b.png", "new.png"]
    )


def test_a_collection_is_filtered_by_columns_that_follow_its_files(collection: Retr) -> None:
    metadata = collection.cwd / "photos" / "metadata.csv"
    for stars in (3, 4):
        metadata.write_text(f'file_name,stars,caption\n1/3.png,{stars},"sea, noon"\n0/0.png,1,\n')
        found = collection.json(
            *("search", "photos/0/4.png", *IN, "--where", "stars > 2", "--show", "stars,caption")
        )
        assert ids(found) == ["1/3.png"]
        assert found[0]["hits"][0]["columns"] == {"stars": stars, "caption": "sea, noon"}
    shown = collection("search", "photos/0/4.png", *IN, "--where", "stars > 2", "--show", "stars")
    assert "stars" in shown.out
    assert (
        "nothing found" in collection("search", "photos/0/4.png", *IN, "--where", "stars > 9").out
    )
    metadata.write_text("file_name,stars\ngone.png,1\n")
    said = collection("search", "photos/0/4.png", *IN).err
    assert "describes 1 file that is not among the images" in said


def test_the_state_is_in_a_workspace_that_exists_but_never_among_the_photographs(
    collection: Retr,
) -> None:
    (collection.cwd / ".retr").mkdir()
    collection.json("search", "photos/0/4.png", *IN)
    assert (collection.cwd / ".retr" / "embeddings").is_dir()
    assert not (collection.cwd / "data").exists()
    shutil.rmtree(collection.cwd / ".retr")
    (collection.cwd / "photos" / ".retr").mkdir()
    inside = Retr(collection.cwd / "photos", collection.env)
    inside.json("search", "0/4.png", "--in", ".", "--encoder", "toy")
    assert (collection.cwd / "data").is_dir()
    assert not [*(collection.cwd / "photos" / ".retr").iterdir()]


def test_paths_are_for_other_programs(collection: Retr) -> None:
    root = collection.cwd / "photos"
    query = "photos/0/4.png"
    lines = collection("search", query, *IN, "-k", 3, "--paths").out
    assert lines.splitlines()[0] == str(root / "0" / "4.png")
    assert len(lines.splitlines()) == 3
    ended = collection("search", query, *IN, "-k", 3, "-0").out
    assert ended.split("\0") == [*lines.splitlines(), ""]
    near = collection("search", query, *IN, "--paths", "--max-distance", "0.000001").out
    assert near == f"{root / '0' / '4.png'}\n"
    assert "exclude each other" in collection.refused("search", query, *IN, "--paths", "--json")
    assert "exclude each other" in collection.refused("search", query, *IN, "--index", "i")


def test_a_data_set_keeps_its_encoder_and_a_folder_that_of_its_embeddings(
    collection: Retr,
) -> None:
    collection.json("encode", "photos", "--encoder", "toy", "--out", "e")
    save(collection.cwd / "photos" / "new.png", seed=60)
    again = collection.json("encode", "photos", "--out", "e")
    assert (again["encoder"]["name"], again["encoded"], again["kept"]) == ("toy", 1, 12)


def test_demo_of_photos_shows_the_life_of_a_collection(collection: Retr) -> None:
    document = collection.json("demo", "photos", "--encoder", "toy", "--out", "demo")
    first, second, third, fourth, fifth = (
        [search[what] for what in ("encoded", "kept", "removed", "renamed")]
        for search in document["searches"]
    )
    assert first == [24, 0, 0, 0]
    assert second == [0, 24, 0, 0]
    assert third == [3, 21, 1, 1]
    assert fourth[0] == 0 and sum(fourth) == 25
    assert fifth == [0, 25, 0, 0]
    whole, filtered = (set(search["found"]) for search in document["searches"][3:])
    assert len(filtered) == 3 and whole != filtered
    assert "there are: cifar10, photos" in collection.refused("demo", "pictures")


def test_list_and_prune(collection: Retr) -> None:
    collection.json("search", "photos/0/4.png", *IN)
    listed = collection.json("list")
    assert [(each["kind"], each["made_with"], each["rows"]) for each in listed] == [
        ("embeddings", "toy", 12),
        ("index", "exact", 12),
    ]
    assert collection.json("prune")["deleted"] == []
    shutil.rmtree(listed[0]["folder"])
    before = snapshot(collection.cwd)
    dry = collection.json("prune", "--dry-run")
    assert [each["folder"] for each in dry["deleted"]] == [listed[1]["folder"]]
    assert snapshot(collection.cwd) == before
    assert collection.json("prune")["deleted"] == dry["deleted"]
    assert not Path(listed[1]["folder"]).exists()
    assert collection.json("list") == []


def test_list_says_that_images_are_gone(collection: Retr) -> None:
    collection.json("search", "photos/0/4.png", *IN)
    (collection.cwd / "photos").rename(collection.cwd / "moved")
    assert "its images are gone; if they were moved" in collection("list").out


def test_a_moved_folder_is_named_once_or_for_one_command(collection: Retr) -> None:
    collection.json("encode", "photos", "--encoder", "toy", "--out", "e")
    collection.json("index", "e", "--backend", "exact", "--out", "i")
    (collection.cwd / "photos").rename(collection.cwd / "moved")
    search = ("search", "moved/0/4.png", "--index", "i", "-k", 2)
    outcome = collection.run(*search)
    assert outcome.code == 0
    assert "2 of 2 images found are not where they were" in outcome.err
    found = collection.json(*search, "--root", "moved")
    assert found[0]["hits"][0]["path"] == str(collection.cwd / "moved" / "0" / "4.png")
    assert "none of the 12 images" in collection.refused("duplicates", "e")
    collection("duplicates", "e", "--root", "moved")
    for folder in ("e", "i"):
        collection("relocate", folder, "moved")
    assert collection.json(*search) == found
    collection("duplicates", "e")
    again = collection.json("encode", "moved", "--encoder", "toy", "--out", "e")
    assert (again["encoded"], again["kept"]) == (0, 12)
    assert collection.json("verify", "i")["ok"]


@pytest.mark.parametrize("folder", ["nowhere", "old=nowhere"])
def test_a_root_that_is_no_folder_is_refused(retr: Retr, gallery: Gallery, folder: str) -> None:
    said = retr.refused("search", gallery.image, "--index", gallery.index(), "--root", folder)
    assert "nowhere is not a folder" in said

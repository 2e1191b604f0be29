"""Recipes: what a TOML file may say, and what is said of what it may not."""

from pathlib import Path

import pytest

from encoders.networks import Network
from encoders.training.checks import check_recipe
from encoders.training.recipe import Recipe, read_recipe, recipe_names, typed
from retrieval.errors import BadInput, UnknownName
from retrieval.registry import encoder_plugin

SMALL = """
about = "a test"
encoder = "siamese"
epochs = 2

[network]
widths = [8, 12, 16]

[[losses]]
name = "triplet"
margin = 0.2
miner = { name = "semi-hard", margin = 0.3 }

[optimizer]
name = "muon"
lr = 1
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_ship_can_be_built(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.about
    check_recipe(recipe)
    network: type[Network] = encoder_plugin(recipe.encoder).network_type
    settings = typed(network.settings_type, recipe.network, "network")
    dim = network(settings, 10, recipe.data.side or network.natural_side(settings)).dim
    assert dim <= 128 or recipe.encoder == "layers"  # which judges pairs


def test_recipe_file_is_parsed(small: Path) -> None:
    recipe = read_recipe(str(small))
    assert recipe.network == {"widths": [8, 12, 16]}
    (loss,) = recipe.losses
    assert loss.options == {"margin": 0.2}
    assert loss.miner is not None
    assert loss.miner.options == {"margin": 0.3}
    assert recipe.optimizer.lr == 1.0
    assert recipe.seed == 0
    assert recipe.to_json()["losses"] == [
        {
            "name": "triplet",
            "weight": 1.0,
            "labels": "class",
            "distance": None,
            "miner": {"name": "semi-hard", "options": {"margin": 0.3}},
            "options": {"margin": 0.2},
        }
    ]


def test_changes_apply_at_every_path(small: Path) -> None:
    changes = [
        "epochs=5",
        "optimizer.name = adamw",
        "losses.0.margin=0.7",
        "losses.0.miner.name='hard'",
        "network.widths=[4, 4, 4]",
        "data.classes=['cat', 'dog']",
        "sampler.batch=20",
    ]
    recipe = read_recipe(str(small), changes)
    assert recipe.epochs == 5
    assert recipe.optimizer.name == "adamw"
    assert recipe.losses[0].options == {"margin": 0.7}
    assert recipe.losses[0].miner is not None
    assert recipe.losses[0].miner.name == "hard"
    assert recipe.network == {"widths": [4, 4, 4]}
    assert recipe.data.classes == ("cat", "dog")
    assert recipe.sampler.batch == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epoch=3", "unknown key of {file} 'epoch'; did you mean 'epochs'?"),
        ("optimizer.rate=3", "unknown key of [optimizer] in {file} 'rate'"),
        ("optimiser.lr=3", "unknown key of {file} 'optimiser'; did you mean 'optimizer'?"),
        ("losses.0.wieght=1", None),  # an option of the loss, which check_recipe refuses
        ("losses.0=triplet", "losses.0 of {file} cannot be 'triplet'"),
        ("seed=-1", "seed of {file} cannot be -1"),
        ("seed=5000000000", "seed of {file} cannot be 5000000000"),
        ("epochs=many", "epochs of {file} cannot be 'many'"),
        ("epochs=-1", "epochs of {file} cannot be -1"),
        ("optimizer.lr=0", "optimizer.lr of {file} cannot be 0"),
        ("optimizer.name=adam", "optimizer.name of {file} cannot be 'adam': "),
        ("augmentation.views=3", "augmentation.views of {file} cannot be 3"),
        ("losses.0.weight=-1", "losses.0.weight of {file} cannot be -1"),
        ("losses.1.weight=1", "no term '1'; the 1 terms are numbered from 0 to 0"),
        ("epochs.first=1", "epochs is a value"),
        ("epochs", "--set epochs has no key, = and value; write --set KEY=VALUE"),
    ],
)
def test_wrong_change_is_refused(small: Path, change: str, said: str | None) -> None:
    if said is None:
        with pytest.raises(UnknownName, match="'wieght'; did you mean 'weight'"):
            check_recipe(read_recipe(str(small), [change]))
        return
    with pytest.raises(BadInput) as raised:
        read_recipe(str(small), [change])
    assert said.format(file=small) in str(raised.value)


def test_settings_of_the_network_are_checked_too(small: Path) -> None:
    settings = encoder_plugin("siamese").network_type.settings_type
    table = read_recipe(str(small), ["network.width=3"]).network
    with pytest.raises(UnknownName, match="unknown key of network 'width'; did you mean 'widths'"):
        typed(settings, table, "network")
    with pytest.raises(BadInput, match=r"widths\.1 of network cannot be 0"):
        typed(settings, {"widths": [1, 0, 1]}, "network")


def test_invalid_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown recipe 'siamese-quik'; did you mean 'siamese-"):
        read_recipe("siamese-quik")
    with pytest.raises(BadInput, match=r"none.toml not found; give a TOML file"):
        read_recipe(str(tmp_path / "none.toml"))
    for content in (b"epochs = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad.toml is not TOML"):
            read_recipe(str(tmp_path / "bad.toml"))
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(BadInput, match="lacks encoder; add it"):
        read_recipe(str(tmp_path / "empty.toml"))


def test_recipe_converts_to_json() -> None:
    import json

    recipe = Recipe("siamese")
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()

"""`clip:` and the model hub: names, revisions, the cache, and what goes wrong on the way."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch

from encoders import hub as hub_module
from encoders.words.clip import Clip
from encoders.words.published import DEFAULT_MODEL, find_published, preferred_tag
from retrieval.errors import BadData, BadInput, RetrError, UnknownName
from retrieval.registry import open_encoder
from tests.dual_models import CONFIGS, PREPROCESSING, TOKENIZER_OF_SIGLIP, save_model
from tests.hub_server import Hub, hub_server

TEXTS = ["a red car in the snow", "two dogs"]
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("CLIP", "SigLIP", "MobileCLIP")
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind) / "model") for kind in kinds}


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the three models, which open_clip knows as `tiny-…`, and an empty cache."""
    monkeypatch.setattr(torch, "load", refuse)
    models = {f"tiny-{kind}": config for kind, config in CONFIGS.items()}
    known = {**open_clip.factory._MODEL_CONFIGS, **models}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known)
    usual = open_clip.pretrained._pcfg()
    for kind in folders:
        tags = {
            "laion2b": {**usual, **PREPROCESSING[kind], "hf_hub": f"tiny/{kind}/"},
            "other-file": {**usual, "hf_hub": f"tiny/{kind}-file/pytorch_model.bin"},
        }
        tags = {tag.replace("-", "_"): facts for tag, facts in tags.items()}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, f"tiny-{kind}", tags)
    with hub_server() as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        for kind, folder in folders.items():
            hub.push_folder(f"tiny/{kind}", folder)
        files = {path.name: path.read_bytes() for path in folders["SigLIP"].glob("tokenizer*")}
        hub.push(TOKENIZER_OF_SIGLIP, files)
        yield hub


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("a pickle was loaded")


def changed_weights(folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """Return the files of a model with other random weights."""
    other = save_model("CLIP", tmp_path / "changed", seed=1)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, WEIGHTS: (other / WEIGHTS).read_bytes()}


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "MobileCLIP"])
def test_models_of_the_hub_equal_their_folders(
    kind: str, hub: Hub, folders: dict[str, Path]
) -> None:
    encoder = Clip(f"tiny-{kind}", "cpu")
    commit = hub.references[f"tiny/{kind}", "main"]
    assert encoder.name == f"clip:tiny-{kind}@laion2b#{commit}"
    origin = {"model": f"tiny-{kind}", "tag": "laion2b", "repository": f"tiny/{kind}"}
    assert origin.items() <= encoder.config.items()
    assert encoder.config["revision"] == commit
    local = Clip(str(folders[kind]), "cpu")
    assert encoder.fingerprint == local.fingerprint
    np.testing.assert_array_equal(encoder.encode_text(TEXTS), local.encode_text(TEXTS))
    if kind == "SigLIP":
        pinned = {TOKENIZER_OF_SIGLIP: hub.references[TOKENIZER_OF_SIGLIP, "main"]}
        assert encoder.config["other_revisions"] == pinned


def test_a_second_use_makes_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Clip("tiny-SigLIP", "cpu")
    fetched = [request for request in hub.requests if request.startswith("GET")]
    assert len(fetched) == 3  # weights, and two files of the tokenizer
    hub.requests.clear()
    for spec in ("tiny-SigLIP", "tiny-SigLIP@laion2b", first.name.removeprefix("clip:")):
        assert Clip(spec, "cpu").fingerprint == first.fingerprint
    assert hub.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Clip("tiny-SigLIP", "cpu").name == first.name


def test_a_moved_branch_does_not_change_an_encoder_with_a_full_name(
    hub: Hub, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Clip("tiny-CLIP", "cpu")
    hub.push("tiny/CLIP", changed_weights(folders["CLIP"], tmp_path))
    hub.connect(monkeypatch, tmp_path / "another machine")
    again = open_encoder(first.name, "cpu")
    assert (again.name, again.fingerprint) == (first.name, first.fingerprint)
    moved = Clip("tiny-CLIP", "cpu")
    assert moved.name != first.name
    assert moved.fingerprint != first.fingerprint


def test_branches_tags_and_commits(hub: Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    main = hub.references["tiny/CLIP", "main"]
    files = changed_weights(folders["CLIP"], tmp_path)
    other = hub.push("tiny/CLIP", files, "refs/pr/1")
    assert Clip("tiny-CLIP#refs/pr/1", "cpu").name == f"clip:tiny-CLIP@laion2b#{other}"
    assert Clip(f"tiny-CLIP#{main}", "cpu").name == f"clip:tiny-CLIP@laion2b#{main}"
    with pytest.raises(BadInput, match="tiny/CLIP has no revision 'v9'; give a branch, a tag"):
        Clip("tiny-CLIP#v9", "cpu")
    for revision in ("../../../main", "/etc/passwd", "a//b", "", "..", "a b", "a/../b"):
        with pytest.raises(BadInput, match=r"revision.*; give a branch, a tag or a commit"):
            Clip(f"tiny-CLIP#{revision}", "cpu")


def test_a_repository_by_its_name(hub: Hub, folders: dict[str, Path]) -> None:
    encoder = Clip("hf-hub:tiny/SigLIP", "cpu")
    commit = hub.references["tiny/SigLIP", "main"]
    assert encoder.name == f"clip:hf-hub:tiny/SigLIP#{commit}"
    assert encoder.fingerprint == Clip(str(folders["SigLIP"]), "cpu").fingerprint
    assert open_encoder(encoder.name, "cpu").name == encoder.name
    hub.push("tiny/empty", {"README.md": b""})
    with pytest.raises(
        BadInput, match=r"tiny/empty has no open_clip_config.json; name a repository"
    ):
        Clip("hf-hub:tiny/empty", "cpu")


def test_pickles_are_refused(hub: Hub, folders: dict[str, Path]) -> None:
    config = (folders["CLIP"] / "open_clip_config.json").read_bytes()
    pickle = {"open_clip_pytorch_model.bin": b"pickle", "open_clip_config.json": config}
    hub.push("tiny/CLIP", pickle)
    hub.push("tiny/CLIP-file", {"pytorch_model.bin": b"pickle"})
    usual = r"tiny/CLIP has no open_clip_model.safetensors, and pickles are not loaded; "
    with pytest.raises(BadInput, match=usual + "tags of tiny-CLIP: other_file$"):
        Clip("tiny-CLIP", "cpu")
    with pytest.raises(BadInput, match=usual + "name another repository$"):
        Clip("hf-hub:tiny/CLIP", "cpu")
    with pytest.raises(BadInput, match=r"tiny/CLIP-file has no pytorch_model.safetensors, and"):
        Clip("tiny-CLIP@Other-File", "cpu")
    assert not [request for request in hub.requests if "/cdn/" in request]


def test_weights_that_were_added_later_are_found(hub: Hub, folders: dict[str, Path]) -> None:
    files = {path.name: path.read_bytes() for path in folders["CLIP"].iterdir()}
    hub.push("tiny/CLIP", {"README.md": b""})
    with pytest.raises(BadInput, match="pickles are not loaded"):
        Clip("tiny-CLIP", "cpu")
    second_name = {"open_clip_pytorch_model.safetensors": files[WEIGHTS]}
    commit = hub.push("tiny/CLIP", second_name)
    assert Clip("tiny-CLIP", "cpu").config["revision"] == commit
    hub.requests.clear()
    assert Clip("tiny-CLIP", "cpu").config["revision"] == commit
    assert hub.requests == []


def test_a_file_with_another_name(hub: Hub, folders: dict[str, Path]) -> None:
    hub.push(
        "tiny/CLIP-file", {"pytorch_model.safetensors": (folders["CLIP"] / WEIGHTS).read_bytes()}
    )
    assert Clip("tiny-CLIP@other_file", "cpu").config["tag"] == "other_file"


def test_repositories_that_are_missing_or_deny_access(hub: Hub) -> None:
    problem = r"the model hub has no repository {}, or denies access to it; check the name, or log"
    for missing in ("tiny/none", "a/b/c", "a b/c"):
        with pytest.raises(BadInput, match=problem.format(missing)):
            Clip(f"hf-hub:{missing}", "cpu")
    hub.gated.add("tiny/CLIP")
    with pytest.raises(BadInput, match=problem.format("tiny/CLIP")):
        Clip("tiny-CLIP", "cpu")


def test_a_download_that_is_cut_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts = 2
    encoder = Clip("tiny-CLIP", "cpu")
    assert len([request for request in hub.requests if request.startswith("GET /cdn/")]) == 3
    assert encoder.config["revision"] == hub.references["tiny/CLIP", "main"]


def test_a_download_that_ends_early_leaves_no_half_file(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts = 1000
    with pytest.raises(RetrError, match=r"cannot fetch open_clip_model.safetensors of tiny/CLIP"):
        Clip("tiny-CLIP", "cpu")
    assert not list((tmp_path / "cache").rglob("blobs/*"))
    hub.cuts = 0
    assert Clip("tiny-CLIP", "cpu").dim == 16


def test_a_damaged_file_in_the_cache(hub: Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    Clip("tiny-CLIP", "cpu")
    (path,) = (tmp_path / "cache").rglob(WEIGHTS)
    path.resolve().write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        BadData, match=r"cannot load the weights (\S+) .*; delete the file"
    ) as error:
        Clip("tiny-CLIP", "cpu")
    Path(str(error.value).split()[4]).unlink()
    assert Clip("tiny-CLIP", "cpu").dim == 16


def test_no_progress_is_shown_without_a_terminal(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    Clip("tiny-CLIP", "cpu")
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HUB_TIMEOUT_SECONDS", 0.2)
    hub.delay = 1
    with pytest.raises(RetrError, match=r"model hub \(TimeoutError\); connect to the network and"):
        Clip("tiny-CLIP", "cpu")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RetrError, match=r"hub \(Connection refused\); connect to the network and"):
        Clip("tiny-CLIP", "cpu")


def test_without_a_network_only_the_cache_is_read(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RetrError, match=r"cannot fetch .*; connect to the network and try again"):
        Clip("tiny-CLIP", "cpu")
    assert hub.requests == []


def test_unknown_models_and_tags(hub: Hub) -> None:
    with pytest.raises(UnknownName, match="unknown model of open_clip 'ViT-B-33'; did you mean"):
        Clip("ViT-B-33", "cpu")
    with pytest.raises(UnknownName, match=r"there are: laion2b, other_file$"):
        Clip("tiny-CLIP@openai", "cpu")
    with pytest.raises(BadInput, match="no weights of coca_base; choose another model"):
        Clip("coca_base", "cpu")
    with pytest.raises(BadInput, match="the model after 'clip:' is empty; give a model"):
        open_encoder("clip:", "cpu")
    assert hub.requests == []


def test_default_weights_of_each_model() -> None:
    default = find_published(DEFAULT_MODEL)
    assert (default.model, default.tag) == ("ViT-B-32-256", "datacomp_s34b_b86k")
    assert default.repository == "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"
    chosen = {model: find_published(model).tag for model in ("ViT-B-32", "RN50", "ViT-L-14-CLIPA")}
    assert chosen == {
        "ViT-B-32": "datacomp_xl_s13b_b90k",
        "RN50": "openai",
        "ViT-L-14-CLIPA": "datacomp1b",
    }
    assert preferred_tag(["yfcc15m", "cc12m"]) == "yfcc15m"


def test_every_model_with_weights_has_a_repository() -> None:
    models = [
        model for model in open_clip.list_models() if open_clip.list_pretrained_tags_by_model(model)
    ]
    assert len(models) > 100
    for published in map(find_published, models):
        assert published.repository.count("/") == 1
        assert published.file in ("", "pytorch_model.safetensors")


def test_activation_is_that_of_the_weights() -> None:
    assert find_published("ViT-B-32@openai").config["quick_gelu"] is True
    assert "quick_gelu" not in find_published("ViT-B-32@laion2b_s34b_b79k").config

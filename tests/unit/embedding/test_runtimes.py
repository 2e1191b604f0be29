"""The choice of a runtime and an arithmetic: promises kept, decisions remembered."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from encoders.toy import Toy
from retrieval.contracts import Images, Metric, Vectors
from retrieval.embedding.encode import bring_up_to_date
from retrieval.embedding.onnx_cache import NETWORK, export_folder, keep_export, open_export
from retrieval.embedding.runtimes import choice, decision, race
from retrieval.embedding.runtimes.agreement import MAX_EXACT_ERROR, MAX_NOISE, deviation
from retrieval.embedding.runtimes.choice import RunBy, runner_for
from retrieval.embedding.runtimes.contract import Arithmetic, Precision, Run
from retrieval.embedding.runtimes.mixed import rounded_layers
from retrieval.embedding.runtimes.race import Way, Ways
from retrieval.embedding.runtimes.running import Running, Threaded
from retrieval.errors import BadData, BadInput, UnknownName
from retrieval.images import Source, open_source
from retrieval.registry import open_encoder, open_quantizer, open_runtime, runtime_names
from retrieval.storage.sets.manifest import Manifest
from tests.made import photographs


@pytest.fixture(scope="module")
def quick() -> Any:
    return open_encoder("siamese-quick", "cpu")


@pytest.fixture
def network(quick: Any, tmp_path: Path) -> Path:
    keep_export(quick)
    return export_folder(quick.fingerprint) / NETWORK


@pytest.fixture
def digits() -> Source:
    return open_source("digits", limit=60)


@pytest.fixture
def small_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "RACE_IMAGES", 40)
    monkeypatch.setattr(choice, "INT8_SECONDS", 1e9)
    monkeypatch.setattr(choice, "SAMPLE_IMAGES", 32)
    monkeypatch.setattr(race, "ROUND_SECONDS", 0.01)


def test_deviation_by_hand() -> None:
    reference = np.array([[3, 4], [-3, -4]], np.float32)
    off = deviation(reference, reference + np.float32([[0.5, 0], [0, 0]]), Metric.EUCLIDEAN)
    assert off.worst == pytest.approx(0.25 / 25)
    assert off.noise == pytest.approx(0.125 / 25)
    scaled = deviation(reference, 7 * reference, Metric.COSINE)
    assert scaled.worst == pytest.approx(0, abs=1e-12)
    assert deviation(reference, 7 * reference, Metric.INNER_PRODUCT).worst == pytest.approx(36)


def test_deviation_of_images_that_are_all_alike_or_not_finite() -> None:
    alike = np.ones((3, 2), np.float32)
    assert deviation(alike, alike, Metric.COSINE).keeps(Precision.EXACT)
    assert not deviation(alike, alike + 1e-3, Metric.EUCLIDEAN).keeps(Precision.FAST)
    broken = deviation(alike, np.full((3, 2), np.nan, np.float32), Metric.COSINE)
    assert not any(broken.keeps(precision) for precision in Precision)


def test_a_cosine_of_9999_is_exact_and_less_is_not() -> None:
    def turned(cosine: float) -> Vectors:
        return np.array([[cosine, np.sqrt(1 - cosine**2)], [0, 1]], np.float32)

    reference = np.eye(2, dtype=np.float32)
    assert deviation(reference, turned(0.99991), Metric.COSINE).keeps(Precision.EXACT)
    assert not deviation(reference, turned(0.99989), Metric.COSINE).keeps(Precision.EXACT)
    assert pytest.approx(2 * (1 - 0.9999)) == MAX_EXACT_ERROR


@pytest.mark.parametrize("bad", [{3}, {0, 9}, {1, 2, 7}, set(), {*range(10)}])
def test_layers_that_rounding_hurts_are_found(bad: set[int]) -> None:
    layers = [(f"layer{i}",) for i in range(10)]
    asked = []

    def noise_of(rounded: Sequence[tuple[str, ...]]) -> float:
        asked.append(len(rounded))
        return sum(1.0 if int(layer[0][5:]) in bad else 1e-5 for layer in rounded)

    found = rounded_layers(layers, noise_of, 1e-3, seconds=10)
    good = tuple(layer for i, layer in enumerate(layers) if i not in bad)
    assert (found.layers if found else ()) == good
    assert found is None or found.noise == pytest.approx(1e-5 * len(good))
    assert len(asked) < 2 * len(layers) + 2


def test_without_time_whole_groups_stay_in_float32() -> None:
    layers = [(f"layer{i}",) for i in range(4)]
    assert rounded_layers(layers, lambda rounded: 1.0, 1e-3, seconds=0) is None
    assert rounded_layers([], lambda rounded: 0.0, 1e-3, seconds=1) is None


@pytest.mark.parametrize("name", runtime_names())
def test_a_runtime_gives_the_embeddings_of_torch_in_any_thread(
    name: str, network: Path, quick: Any
) -> None:
    images = photographs(24, 32)
    wanted = quick.with_precision(Precision.EXACT).encode(images)
    runtime = open_runtime(name)
    assert Arithmetic.FLOAT32 in runtime.arithmetics() and runtime.version
    run = runtime.open(network, Arithmetic.FLOAT32, 3)
    with ThreadPoolExecutor(3) as threads:
        parts = threads.map(run, [images[start : start + 5] for start in range(0, 24, 5)])
        np.testing.assert_allclose(np.concatenate([*parts]), wanted, atol=1e-5)
    broken = network.with_name("broken.onnx")
    broken.write_bytes(network.read_bytes()[:1000])
    with pytest.raises(BadData, match=r"broken.onnx .*; export it again"):
        runtime.open(broken, Arithmetic.FLOAT32, 1)


@pytest.mark.parametrize("name", runtime_names())
def test_int8_keeps_the_layers_that_it_must(name: str, network: Path, quick: Any) -> None:
    images = photographs(48, 32)
    quantizer, runtime = open_quantizer(), open_runtime(name)
    layers = quantizer.layers(network)
    first = layers[0]
    assert len(first) == 2 and all("whitening" in operator for operator in first), "two views"
    calibrated = quantizer.calibrated(network, images, network.parent)
    wanted = quick.with_precision(Precision.EXACT).encode(images)

    def noise(wide: Sequence[str]) -> float:
        target = network.with_name("int8.onnx")
        calibrated.write(wide, target)
        run = runtime.open(target, Arithmetic.INT8, 1)
        return deviation(wanted, run(images), Metric.COSINE).noise

    # 2.4 times with VNNI; far more on a processor whose sums of int8 products saturate.
    assert 2 * noise([*first]) < noise([])
    everything = [operator for layer in layers for operator in layer]
    assert noise(everything) < 1e-4, "only what lies between layers is rounded"


PAD = [1, 1, 1, 1]


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """A network whose second block is added to the first: stride of 2, padding, biases, ReLU."""
    rng = np.random.default_rng(0)
    made = {
        "first": rng.normal(0, 0.1, (8, 3, 3, 3)),
        "second": rng.normal(0, 0.3, (8, 8, 1, 1)),
        "third": rng.normal(0, 0.3, (4, 8, 1, 1)),
    }
    weights = [numpy_helper.from_array(w.astype(np.float32), f"{k}_w") for k, w in made.items()]
    biases = [
        numpy_helper.from_array(rng.normal(0, 9, len(w)).astype(np.float32), f"{k}_b")
        for k, w in made.items()
    ]
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        node("Transpose", ["cast"], ["pixels"], perm=[0, 3, 1, 2]),
        node(
            "Conv", ["pixels", "first_w", "first_b"], ["a"], "first", strides=[2, 2], pads=[1] * 4
        ),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "second_w", "second_b"], ["c"], "second"),
        node("Add", ["b", "c"], ["d"], "sum"),
        node("Conv", ["d", "third_w", "third_b"], ["e"], "third"),
        node("ReduceMean", ["e"], ["embeddings"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 4])],
        [*weights, *biases],
    )
    file = tmp_path / "residual.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    return file


def test_marks_of_float32_reach_what_openvino_computes_together(residual: Path) -> None:
    runtime = cast(Any, open_runtime("openvino"))
    read = openvino.Core().read_model(str(residual))
    marked = runtime._marked(read, {"second"})
    kept = [
        operation.get_type_name()
        for operation in marked.get_ops()
        if any("DisablePrecisionConversion" in key for key in operation.get_rt_info())
    ]
    assert sorted(kept) == ["Add", "Add", "Convolution"], "with its bias and the sum"


@pytest.mark.parametrize("wide", [["first"], ["second"], ["third"], ["first", "third"]])
def test_layers_in_float32_stay_so_in_bfloat16(residual: Path, wide: list[str]) -> None:
    runtime = open_runtime("openvino")
    if Arithmetic.BFLOAT16 not in runtime.arithmetics():
        pytest.skip("this processor has no bfloat16")
    images = photographs(8, 16)
    exact = runtime.open(residual, Arithmetic.FLOAT32, 1)(images)

    def noise(wide: Sequence[str]) -> float:
        found = runtime.open(residual, Arithmetic.BFLOAT16, 1, wide)(images)
        return deviation(exact, found, Metric.EUCLIDEAN).noise

    assert noise(wide) != noise([])
    assert noise(["first", "second", "third"]) < 1e-9


def test_embeddings_of_an_exact_runner_are_those_of_float32(quick: Any, digits: Source) -> None:
    images = photographs(21, 32)
    wanted = quick.with_precision(Precision.EXACT).encode(images)
    for name in ("torch", *runtime_names()):
        runner = runner_for(quick, digits, "exact", name)
        assert isinstance(runner, Running)
        assert runner.made_by.runtime.startswith(name)
        assert runner.made_by.arithmetic is Arithmetic.FLOAT32
        assert runner.fingerprint == quick.fingerprint
        np.testing.assert_allclose(runner.encode(images), wanted, atol=1e-5)
        np.testing.assert_allclose(runner.started(images)(), wanted, atol=1e-5)
        assert runner.encode(images[:0]).shape == (0, quick.dim)
        with pytest.raises(BadInput, match="images must be"):
            runner.encode(images[:, :5])


def test_an_encoder_without_an_export_runs_by_itself(digits: Source) -> None:
    toy = Toy()
    assert runner_for(toy, digits) is toy
    with pytest.raises(BadInput, match="cannot be exported; give --runtime auto or torch"):
        runner_for(toy, digits, runtime="onnx")
    with pytest.raises(UnknownName, match=r"auto, .*torch"):
        runner_for(toy, digits, runtime="onxn")
    with pytest.raises(UnknownName, match="balanced"):
        runner_for(toy, digits, "quick")


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(
        __import__("sys").modules, "encoders.runtimes.openvino_runtime", raising=False
    )
    with pytest.raises(BadInput, match=r"cannot be imported .*; pip install openvino$"):
        choice._opened("openvino")
    assert "openvino" not in choice._opened("auto")


@pytest.mark.usefixtures("small_race")
def test_a_race_is_held_once(quick: Any, digits: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = RunBy(note=said.append).runner(quick, digits)
    assert isinstance(first, Running)
    assert len(said) == 2 and "comparing runtimes for siamese-quick on 32 images" in said[0]
    titles = [f"{name} float32" for name in runtime_names()]
    assert all(title in said[1] for title in titles) and "images/s" in said[1]
    monkeypatch.setattr(choice, "raced", _no_race)
    second = RunBy(note=said.append).runner(quick, open_source("digits", limit=50))
    assert isinstance(second, Running)
    assert second.made_by == first.made_by and len(said) == 2
    from_cache = open_export(quick.fingerprint)
    assert from_cache is not None
    third = runner_for(from_cache, digits)
    assert isinstance(third, Running) and third.made_by == first.made_by
    with pytest.raises(AssertionError, match="no race"):
        runner_for(quick, digits, "exact")


def _no_race(*given: object) -> dict[str, float]:
    raise AssertionError("no race")


@pytest.mark.usefixtures("small_race")
def test_a_decision_of_another_time_is_not_used(
    quick: Any, digits: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner_for(quick, digits)
    file = export_folder(quick.fingerprint) / "runtime-balanced-auto.json"
    text = file.read_text()
    decided = json.loads(text)
    assert decided["precision"] == "balanced" and len(decided["rates"]) >= 2
    monkeypatch.setattr(choice, "raced", _no_race)
    runner_for(quick, digits)  # the decision holds
    changes = [
        (type(open_runtime("onnx")), "version", "0"),
        (decision, "processor", lambda: "other"),
        (decision, "usable_cores", lambda: 99),
    ]
    for place, name, value in changes:
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="no race"):
            patch.setattr(place, name, value)
            runner_for(quick, digits)
        file.write_text(text)
    file.write_text(text.replace("float32", "int8"))
    with pytest.raises(AssertionError, match="no race"):
        runner_for(quick, digits)


@pytest.mark.usefixtures("small_race")
def test_fast_is_calibrated_on_the_first_images_of_its_source(quick: Any, digits: Source) -> None:
    folder = export_folder(quick.fingerprint)
    runner_for(quick, digits, "fast")
    decided = json.loads((folder / "runtime-fast-auto.json").read_text())
    assert any(title.endswith("int8") for title in decided["rates"])
    assert decided["noise"] <= MAX_NOISE[Precision.FAST]
    if decided["arithmetic"] == "int8":  # as on most processors
        assert decided["network"] == "network-int8.onnx" and decided["images"]
    before = (folder / "runtime-fast-auto.json").read_bytes()
    runner_for(quick, digits, "fast")
    assert (folder / "runtime-fast-auto.json").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.is_dir()], "nothing is left of races"


def test_fast_is_refused_where_no_race_may_be(quick: Any, digits: Source) -> None:
    with pytest.raises(BadInput, match="give --precision balanced"):
        RunBy(Precision.FAST, races=False).runner(quick, digits)
    assert isinstance(RunBy(races=False).runner(quick, digits), Running)


class Wrong:
    """A runtime whose embeddings are off by a share of their length, and faster than any."""

    version = "1"
    share = 0.2

    def arithmetics(self) -> frozenset[Arithmetic]:
        return frozenset({Arithmetic.FLOAT32, Arithmetic.BFLOAT16})

    def open(
        self, network: Path, arithmetic: Arithmetic, calls: int, wide: Sequence[str] = ()
    ) -> Run:
        right = open_runtime("onnx").open(network, Arithmetic.FLOAT32, calls)
        rng = np.random.default_rng(0)

        def run(images: Images) -> Vectors:
            vectors = right(images)
            return vectors + np.float32(self.share / 10) * rng.standard_normal(
                vectors.shape, np.float32
            )

        return run


def test_a_runtime_that_breaks_the_promise_is_left_out(
    network: Path, quick: Any, tmp_path: Path
) -> None:
    runtimes: dict[str, Any] = {"onnx": open_runtime("onnx"), "wrong": Wrong()}
    ways = Ways(
        network, quick.metric, quick.dim, runtimes, open_quantizer(), photographs(32, 32), tmp_path
    )
    for precision in Precision:
        found: Iterator[Way] = ways.found(precision, with_int8=False)
        assert [way.title for way in found] == ["onnx float32"]


def test_pieces_keep_their_order() -> None:
    def run(images: Images) -> Vectors:
        return images[:, :1, 0, 0].astype(np.float32)

    images = np.arange(200, dtype=np.uint8)[:, None, None, None]
    threaded = Threaded(run, 1)
    np.testing.assert_array_equal(threaded(images)[:, 0], np.arange(200))
    first, second = threaded.started(images[:100]), threaded.started(images[100:])
    np.testing.assert_array_equal(second()[:, 0], np.arange(100, 200))
    np.testing.assert_array_equal(first()[:, 0], np.arange(100))


def test_the_manifest_says_what_made_the_embeddings(
    quick: Any, digits: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    runner = runner_for(quick, digits, runtime="onnx")
    bring_up_to_date(digits, runner, folder)
    manifest = Manifest.read(folder)
    (made_by,) = manifest.made_by
    assert isinstance(runner, Running) and made_by == runner.made_by
    assert str(made_by).startswith("onnx ") and "float32 (balanced) on " in str(made_by)


def test_a_small_source_stays_with_torch_where_it_rounds(
    quick: Any, digits: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.inference.has_bfloat16", lambda device: True)
    first = runner_for(quick, digits)
    assert isinstance(first, Running)
    assert first.made_by.arithmetic is Arithmetic.BFLOAT16
    from_cache = open_export(quick.fingerprint)
    assert from_cache is not None
    again = runner_for(from_cache, digits)
    assert isinstance(again, Running) and again.made_by == first.made_by
    exact = runner_for(quick, digits, "exact")
    assert isinstance(exact, Running) and exact.made_by.arithmetic is Arithmetic.FLOAT32


def test_torch_is_torch_also_for_an_exported_network(quick: Any, digits: Source) -> None:
    keep_export(quick)
    from_cache = open_export(quick.fingerprint)
    assert from_cache is not None
    for asked in (RunBy(runtime="torch"), RunBy(races=False)):
        runner = asked.runner(from_cache, digits)
        assert isinstance(runner, Running) and runner.made_by.runtime.startswith("torch ")


def test_processes_that_may_not_race_run_torch(quick: Any, digits: Source) -> None:
    runner = RunBy(races=False).runner(quick, digits)
    assert isinstance(runner, Running) and runner.made_by.runtime.startswith("torch ")
    runner = RunBy(runtime="onnx", races=False).runner(quick, digits)
    assert isinstance(runner, Running) and runner.made_by.runtime.startswith("onnx ")

"""Enumerations of the public API, given by name.

Every public function and class that takes one is found by its signature, so that a new one that
does not check its choices fails here.
"""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest

from retrieval import Labelled, build_index, evaluate, open_index
from retrieval.choices import choice, resolve_choices
from retrieval.contracts import Framing, Metric, Resample
from retrieval.drawing.layout import Layout, laid_out
from retrieval.errors import BadInput, UnknownName
from retrieval.hits import checked_vectors, prepared
from retrieval.index.auto.halving import candidates_of
from retrieval.pairs.calibration import Calibration, FittedTo, Method, file_name
from retrieval.pairs.draw import Pairs, Scheme, draw_pairs, pair_distances
from retrieval.pairs.verification import Procedure, verify
from retrieval.quality.curves import precision_recall
from retrieval.quality.evaluation import evaluate_hits, evaluate_index
from retrieval.quality.protocols import Protocol, sides_of
from retrieval.quality.ranking import distances_of, map_rankings, nearest, pairwise
from retrieval.registry import indexer_names, indexer_plugin, make_indexer
from retrieval.storage.sets.manifest import Dtype
from retrieval.workspace import Role, Workspace
from tests.made import embeddings

PACKAGES = ("retrieval", "encoders", "indexers", "benchmarks")
NOT_CHOICES = ("l2", "COSINE", "", "cosine ", 3, 1.5, b"cosine", ["cosine"], object())


@dataclass(frozen=True)
class Door:
    """A parameter of a public function or constructor that takes an enumeration."""

    name: str
    call: Callable[..., Any]
    parameter: str
    kind: type[StrEnum]
    optional: bool

    def give(self, value: object) -> object:
        """Call it with the value, and with valid members or stand-ins for all else."""
        arguments: dict[str, Any] = {}
        for name, other in inspect.signature(self.call).parameters.items():
            if name == self.parameter:
                arguments[name] = value
            elif (found := kind_of(other.annotation)) is not None:
                arguments[name] = next(iter(found))
            elif other.default is other.empty and other.kind is not other.VAR_KEYWORD:
                arguments[name] = MagicMock()
        result = self.call(**arguments)
        return [*result] if inspect.isgenerator(result) else result


def kind_of(annotation: object) -> type[StrEnum] | None:
    """The enumeration in an annotation: alone, or in a union with text or None."""
    for each in typing.get_args(annotation) or (annotation,):
        if isinstance(each, type) and issubclass(each, StrEnum):
            return each
    return None


def callables(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions, constructors and methods that a module defines."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found) and not issubclass(found, StrEnum | Exception):
            if getattr(found, "_is_protocol", False):
                continue  # nothing to call
            if not inspect.isabstract(found):
                yield name, found
            for method, value in vars(found).items():
                if method.startswith("_"):
                    continue
                if isinstance(value, classmethod | staticmethod):
                    yield f"{name}.{method}", getattr(found, method)
                elif inspect.isfunction(value):
                    yield f"{name}.{method}", partial(value, MagicMock())


def doors() -> Iterator[Door]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            if ".peers" in found.name:
                continue  # programs for other libraries, each run by itself
            module = importlib.import_module(found.name)
            for name, call in callables(module):
                for parameter in inspect.signature(call).parameters.values():
                    kind = kind_of(parameter.annotation)
                    if kind is not None:
                        optional = type(None) in typing.get_args(parameter.annotation)
                        title = f"{found.name}.{name}({parameter.name})"
                        yield Door(title, call, parameter.name, kind, optional)


def test_every_public_function_and_class_refuses_what_is_no_member() -> None:
    """Also before it does anything else, so that the stand-ins do for all other arguments."""
    found = [*doors()]
    names = {door.name for door in found}
    # A fault of the search must not look like no findings.
    assert len(found) > 80
    assert {
        "retrieval.quality.evaluation.evaluate(metric)",
        "retrieval.storage.sets.manifest.Facts(dtype)",
        "retrieval.workspace.Workspace.latest(role)",
        "indexers.hnsw.Hnsw(metric)",
        "indexers.hnsw.Hnsw.candidates(metric)",
        "encoders.inference.TorchEncoder(metric)",
        "benchmarks.suite.run.run(metric)",
    } <= names
    wrong = []
    for door in found:
        for value in (*NOT_CHOICES, *(() if door.optional else (None,))):
            try:
                door.give(value)
            except UnknownName as error:
                if all(member in str(error) for member in door.kind):
                    continue
                wrong.append(f"{door.name} does not list the names: {error}")
            except Exception as error:
                wrong.append(f"{door.name} given {value!r}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{door.name} takes {value!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("value", NOT_CHOICES)
def test_a_choice_is_a_member_or_its_name(value: object) -> None:
    assert choice(Metric, "manhattan") is Metric.MANHATTAN
    assert choice(Metric, np.str_("manhattan")) is Metric.MANHATTAN
    assert choice(Metric, Metric.MANHATTAN) is Metric.MANHATTAN
    with pytest.raises(
        UnknownName, match=r"unknown metric '.*there are: cosine, euclidean, inner_product, man"
    ):
        choice(Metric, value)
    with pytest.raises(UnknownName, match="unknown distance '"):
        choice(Metric, value, "distance")


def test_the_error_is_one_short_line() -> None:
    with pytest.raises(UnknownName) as caught:
        choice(Metric, np.zeros((50, 50)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [value for value in NOT_CHOICES if value != ""])
def test_names_that_are_no_enumeration_are_refused_alike(value: object) -> None:
    with pytest.raises(UnknownName, match=r"unknown backend '.*there are: exact, faiss, hnsw"):
        make_indexer(cast(str, value), {})
    for option in ("index_type", "consistency"):
        with pytest.raises(UnknownName, match=f"unknown {option} of backend milvus '"):
            indexer_plugin("milvus")(**{option: value})
    for metric in (value, "cosine\n", np.array(["cosine"])):
        with pytest.raises(UnknownName, match=r"unknown metric '.*there are: cosine, euclid"):
            make_indexer("exact", {"metric": metric})


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("name", indexer_names())
def test_indexers_hold_members(name: str, metric: Metric) -> None:
    kind = indexer_plugin(name)
    try:
        by_member = kind(metric=metric)
    except BadInput as refusal:  # the library has no such distance
        with pytest.raises(BadInput) as caught:
            kind(metric=metric.value)
        assert str(caught.value) == str(refusal)
        return
    by_name = kind(metric=metric.value)
    assert by_name == by_member
    assert hash(by_name) == hash(by_member)
    assert by_name.metric is metric
    assert kind(metric.value).metric is metric  # the first field
    assert make_indexer(name, {"metric": metric.value}) == by_member
    assert make_indexer(name, {"metric": metric}) == by_member


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("name", ["exact", "ivf", "faiss"])
def test_an_index_of_a_metric_by_name_finds_the_same(name: str, metric: Metric) -> None:
    kind = indexer_plugin(name)
    options = {"factory": "Flat"} if name == "faiss" else {}
    rows, distances = [], []
    for given in (metric, metric.value):
        hits = kind(given, **options).build(DATABASE.vectors).search(QUERIES.vectors, 5)
        rows.append(hits.rows)
        distances.append(hits.distances)
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(*distances)
    truth = expected_distances(QUERIES.vectors, DATABASE.vectors, metric)
    np.testing.assert_allclose(distances[0], np.sort(truth, axis=1)[:, :5], rtol=1e-4, atol=1e-5)


def items(count: int, prefix: str, seed: int) -> Labelled:
    """Five clusters in 16 dimensions, of vectors of unlike lengths."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 5
    centers = np.random.default_rng(0).normal(size=(5, 16))
    vectors = (centers[labels] + draw.normal(size=(count, 16))) * draw.uniform(0.5, 2, (count, 1))
    return Labelled(
        vectors.astype(np.float32), [f"{prefix}{i}" for i in range(count)], labels.astype(str)
    )


QUERIES, DATABASE = items(20, "q", 1), items(60, "d", 2)
PAIRS = Pairs(np.arange(10), np.arange(10, 20), np.arange(10) < 5)


def expected_distances(a: Any, b: Any, metric: Metric) -> Any:
    """The distances (q, n) by their definitions, in double precision."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    dot = (a * b).sum(2)
    return {
        "cosine": 1 - dot / np.sqrt((a * a).sum(2) * (b * b).sum(2)),
        "euclidean": np.sqrt(((a - b) ** 2).sum(2)),
        "inner_product": -dot,
        "manhattan": np.abs(a - b).sum(2),
    }[metric.value]


@pytest.mark.parametrize("metric", Metric)
def test_distances_by_name_are_those_of_the_definitions(metric: Metric) -> None:
    name = cast(Metric, metric.value)
    truth = expected_distances(QUERIES.vectors, DATABASE.vectors, metric)
    order = np.argsort(truth, axis=1, kind="stable")
    ranked = map_rankings(QUERIES.vectors, DATABASE.vectors, name, lambda _, rows: rows.copy())
    np.testing.assert_array_equal(ranked, order)
    hits = nearest(QUERIES.vectors, DATABASE.vectors, name, 7)
    np.testing.assert_array_equal(hits.rows, order[:, :7])
    np.testing.assert_allclose(
        distances_of(QUERIES.vectors, DATABASE.vectors, order, name), np.sort(truth, axis=1)
    )
    a, b = QUERIES.vectors[PAIRS.first], QUERIES.vectors[PAIRS.second]
    between = np.diag(expected_distances(a, b, metric))
    np.testing.assert_allclose(pair_distances(QUERIES.vectors, PAIRS, name), between)
    np.testing.assert_allclose(pairwise(a.astype(float), b.astype(float), name), between)


@pytest.mark.parametrize("metric", Metric)
def test_measures_by_name_are_those_of_the_member(metric: Metric) -> None:
    name = cast(Metric, metric.value)
    by_member = evaluate(QUERIES, DATABASE, metric)
    by_name = evaluate(QUERIES, DATABASE, name)
    assert by_name.means == by_member.means
    assert by_name.metric is metric
    assert by_name.to_json() == by_member.to_json()
    # All metrics rank these vectors in different ways, so that another would show.
    others = [evaluate(QUERIES, DATABASE, other).map for other in Metric if other is not metric]
    assert by_name.map not in others

    hits = nearest(QUERIES.vectors, DATABASE.vectors, metric, 60)
    through = evaluate_hits(QUERIES, DATABASE, hits, name, (1, 10))
    assert through.precision_at[10] == by_member.precision_at[10]
    assert through.metric is metric
    index = make_indexer("exact", {"metric": metric}).build(DATABASE.vectors)
    assert evaluate_index(QUERIES, DATABASE, index, name).metric is metric

    np.testing.assert_array_equal(
        precision_recall(QUERIES, DATABASE, name).overall,
        precision_recall(QUERIES, DATABASE, metric).overall,
    )
    outcomes = [
        verify(QUERIES, DATABASE, Procedure(given, count=20), "encoder") for given in (metric, name)
    ]
    np.testing.assert_array_equal(outcomes[0].distances, outcomes[1].distances)
    assert outcomes[1].calibration.metric is metric


def test_vectors_are_prepared_for_a_metric_by_name() -> None:
    lengths = np.linalg.norm(prepared(QUERIES.vectors, "cosine"), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    assert prepared(QUERIES.vectors, "euclidean") is QUERIES.vectors
    long = np.full((2, 2), 1e30, np.float32)
    assert checked_vectors(long, "cosine") is long
    with pytest.raises(BadInput, match="length"):
        checked_vectors(long, "euclidean")


def test_an_index_folder_of_a_metric_by_name(tmp_path: Path) -> None:
    made = embeddings(tmp_path / "set", DATABASE.vectors)
    facts = build_index([made], "exact", tmp_path / "index", "manhattan")
    assert facts.metric is Metric.MANHATTAN
    truth = expected_distances(QUERIES.vectors, DATABASE.vectors, Metric.MANHATTAN)
    hits = open_index(tmp_path / "index").index.search(QUERIES.vectors, 1)
    np.testing.assert_allclose(hits.distances[:, 0], truth.min(axis=1), rtol=1e-5)
    for wrong in ("l2", ""):
        with pytest.raises(UnknownName, match="manhattan"):
            build_index([made], "exact", tmp_path / "other", wrong)
    assert not (tmp_path / "other").exists()


def test_backends_are_tried_with_a_metric_by_name() -> None:
    found = candidates_of("manhattan", 1000, 16, 0, True)
    assert {vars(indexer)["metric"] for _, indexer in found} == {Metric.MANHATTAN}


def test_layouts_by_name() -> None:
    points = laid_out(DATABASE.vectors, "pca", "cosine", 0)
    np.testing.assert_array_equal(points, laid_out(DATABASE.vectors, Layout.PCA, Metric.COSINE, 0))


@pytest.mark.parametrize("scheme", Scheme)
def test_pairs_are_drawn_by_a_scheme_by_name(scheme: Scheme) -> None:
    labels = np.arange(40) % 4
    drawn = [draw_pairs(labels, 20, given, 0) for given in (scheme, scheme.value)]
    np.testing.assert_array_equal(drawn[0].second, drawn[1].second)


@pytest.mark.parametrize("protocol", [Protocol.OFFICIAL, Protocol.UNSEEN])
def test_sides_of_a_protocol_by_name(protocol: Protocol) -> None:
    seen = np.zeros(len(DATABASE), bool)
    by_name = sides_of(protocol.value, QUERIES, DATABASE, seen)
    assert by_name.protocol is protocol
    assert by_name.database is sides_of(protocol, QUERIES, DATABASE, seen).database


def test_settings_by_name() -> None:
    assert Framing(32, resample=cast(Resample, "bilinear")).resample is Resample.BILINEAR
    procedure = Procedure("cosine", scheme="consecutive", method="isotonic")  # type: ignore[arg-type]
    assert procedure == Procedure(Metric.COSINE, scheme=Scheme.CONSECUTIVE, method=Method.ISOTONIC)
    assert procedure.scheme is Scheme.CONSECUTIVE
    assert Procedure(Metric.COSINE, method=None).method is None
    distances, alike = np.array([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False])
    fitted_to = FittedTo(4, 8, (), "made")
    by_name = Calibration.fitted(distances, alike, "logistic", "cosine", "encoder", fitted_to)
    assert (by_name.method, by_name.metric) == (Method.LOGISTIC, Metric.COSINE)
    assert file_name("cosine") == file_name(Metric.COSINE)


def test_roles_by_name(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "workspace")
    place.remember("queries", tmp_path)
    assert place.latest(Role.QUERIES) == place.latest("queries") == tmp_path
    assert place.latest("index") is None


def test_fields_that_may_be_none() -> None:
    @dataclass(frozen=True)
    class Settings:
        dtype: Dtype
        metric: Metric | None = None
        name: str = "cosine"

        def __post_init__(self) -> None:
            resolve_choices(self)

    made = Settings(cast(Dtype, "float16"), cast(Metric, "cosine"))
    assert (made.dtype, made.metric) == (Dtype.FLOAT16, Metric.COSINE)
    assert type(made.name) is str
    assert Settings(Dtype.FLOAT32).metric is None
    with pytest.raises(UnknownName, match="unknown dtype 'None'; there are: float16, float32"):
        Settings(cast(Dtype, None))

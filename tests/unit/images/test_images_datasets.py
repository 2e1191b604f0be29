"""Data sets by name: where they are looked for, how they are fetched, and what is in them."""

import gzip
import hashlib
import http.server
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from retrieval.contracts import Framing
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images import DATA_SET_NAMES, Source, decode, load, open_source, read_image
from retrieval.images.datasets import catalog as datasets
from retrieval.images.datasets.catalog import DATA_SETS, DataSet, locate
from retrieval.images.datasets.download import Official, download


def idx(*shape: int) -> bytes:
    values = np.arange(np.prod(shape)) % 10
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


FILES = {
    "train-images-idx3-ubyte.gz": idx(6, 28, 28),
    "train-labels-idx1-ubyte.gz": idx(6),
    "t10k-images-idx3-ubyte.gz": idx(2, 28, 28),
    "t10k-labels-idx1-ubyte.gz": idx(2),
}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    root = tmp_path / "served" / "mnist"
    root.mkdir(parents=True)
    for name, content in FILES.items():
        (root / name).write_bytes(content)

    handler = partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def official(server: http.server.ThreadingHTTPServer, **wrong: str) -> Official:
    sums = {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in FILES.items()
    }
    return Official(f"http://127.0.0.1:{server.server_address[1]}/mnist/", {**sums, **wrong})


@pytest.fixture
def published(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> http.server.ThreadingHTTPServer:
    """MNIST, published on this machine, and nowhere else."""
    monkeypatch.setitem(DATA_SETS, "mnist", DataSet(tuple("0123456789"), official(server)))
    monkeypatch.delenv("RETR_DATA_DIR", raising=False)
    return server


def asked(server: http.server.ThreadingHTTPServer) -> list[str]:
    return [path.rpartition("/")[2] for path in server.asked]  # type: ignore[attr-defined]


def test_what_is_nowhere_is_fetched_into_the_cache(
    published: http.server.ThreadingHTTPServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_source("mnist", split="test")
    assert (source.name, len(source)) == ("mnist/test", 2)
    cache = tmp_path / "cache" / "retr" / "mnist"
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == FILES
    assert asked(published) == list(FILES)
    open_source("mnist")
    assert asked(published) == list(FILES)  # once is enough
    assert capfd.readouterr() == ("", "")  # a bar needs a terminal


def test_files_that_are_there_already_are_not_fetched_again(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    name, *others = FILES
    (tmp_path / name).write_bytes(b"mine")
    download(official(server), tmp_path)
    assert asked(server) == others
    assert (tmp_path / name).read_bytes() == b"mine"


def test_another_checksum_is_refused_and_leaves_nothing(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    first, second, *_ = FILES
    target = tmp_path / "target"
    with pytest.raises(BadSource, match=rf"{second} has an MD5 mismatch: [0-9a-f]+, not 0000; "):
        download(official(server, **{second: "0000"}), target)
    assert [file.name for file in target.iterdir()] == [first]


def test_a_missing_file_is_refused_and_leaves_nothing(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    with pytest.raises(BadSource, match=r"cannot fetch .*/none\.gz: HTTP Error 404"):
        download(Official(official(server).base, {"none.gz": "0"}), target)
    assert list(target.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(official(server), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_a_connection_that_breaks_is_refused(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Handler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")

    monkeypatch.setattr(Handler, "do_GET", half)
    with pytest.raises(BadSource, match=r"has an MD5 mismatch|cannot fetch"):
        download(official(server), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_a_server_that_is_down_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setitem(DATA_SETS, "mnist", DataSet((), Official(address, {"a.gz": "0"})))
    monkeypatch.setenv("RETR_DATA_DIR", str(tmp_path / "env"))
    with pytest.raises(BadSource) as caught:
        open_source("mnist", data_dir=tmp_path / "given")
    assert str(caught.value) == (
        f"no data set 'mnist' in {tmp_path}/given, {tmp_path}/env, {tmp_path}/cache/retr, and "
        f"fetching it failed: cannot fetch {address}/a.gz: <urlopen error [Errno 111] Connection "
        "refused>; put a copy into a folder 'mnist' and name the folder above it with --data or "
        "RETR_DATA_DIR"
    )


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


def test_where_a_data_set_is_looked_for(
    published: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, env = tmp_path / "given", tmp_path / "env"
    monkeypatch.setenv("RETR_DATA_DIR", str(env))
    cache = put(tmp_path / "cache" / "retr" / "mnist", *FILES)
    assert locate("mnist", given) == cache
    put(env / "mnist", *FILES)
    assert locate("mnist", given) == env / "mnist"
    put(given / "mnist")
    assert locate("mnist", given) == env / "mnist"  # an empty folder is not a data set
    put(given / "mnist", *FILES)
    assert locate("mnist", given) == given / "mnist"
    assert locate("mnist") == env / "mnist"
    assert asked(published) == []


def test_half_a_data_set_serves_the_split_that_it_has(
    published: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    train, test = list(FILES)[:2], list(FILES)[2:]
    given = put(tmp_path / "given" / "mnist", *test)
    assert locate("mnist", tmp_path / "given", "test") == given
    assert asked(published) == []
    cache = put(tmp_path / "cache" / "retr" / "mnist", *train)
    assert locate("mnist", None, "test") == cache
    assert asked(published) == test


def test_splits_of_data_sets() -> None:
    for name in DATA_SET_NAMES:
        with pytest.raises(UnknownName, match=f"split of {name} 'valid'; there are: test, train"):
            open_source(name, split="valid")


def test_the_official_files_are_named_with_their_sums() -> None:
    for name in ("mnist", "fashion-mnist"):
        assert list(DATA_SETS[name].official.files) == list(FILES)
    sums = [md5 for data_set in DATA_SETS.values() for md5 in data_set.official.files.values()]
    assert len(set(sums)) == 9
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in sums)


def test_importing_images_imports_neither_torch_nor_sklearn() -> None:
    code = "import sys, retrieval.images; print({'torch', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- digits ---


def test_digits_are_scaled_and_split_by_position() -> None:
    train, test = open_source("digits"), open_source("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.fingerprint != test.fingerprint
    items = [*train.items(), *test.items()]
    bunch = load_digits()
    assert [item.label for item in items] == [str(target) for target in bunch.target]
    values = set()
    for item, image in zip(items, bunch.images, strict=True):
        assert isinstance(item.content, np.ndarray)
        values |= set(zip(image.ravel().tolist(), item.content.ravel().tolist(), strict=True))
    # round(v × 255 / 16): 15.9, 31.9, 47.8, 63.8, …; 127.5 goes to the even 128
    scaled = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert values == set(enumerate(scaled))
    assert [items[i].id for i in (0, 1436, 1437)] == ["train/00000", "train/01436", "test/00000"]
    assert items[1437].path == "digits#1437"
    assert next(train.items(1436)).id == "train/01436"


def test_digits_can_be_read_again() -> None:
    for item in list(open_source("digits", split="test").items())[::50]:
        expected = np.asarray(decode(item.content, "x"))
        assert np.array_equal(np.asarray(read_image(item.path)), expected)
    with pytest.raises(BadImage, match="no such row"):
        read_image("digits#1797")


# --- the real ones ---


def label_counts(source: Source) -> list[tuple[str | None, int]]:
    return sorted(Counter(item.label for item in source.items()).items(), key=str)


def reads_again(source: Source) -> None:
    for start in (0, 1, 4321, len(source) - 1):
        item = next(source.items(start))
        assert item.id == f"{source.name.partition('/')[2]}/{start:05}"
        expected = np.asarray(decode(item.content, item.path))
        assert np.array_equal(np.asarray(read_image(item.path)), expected)
        assert load(item, Framing(32)).shape == (32, 32, 3)


@pytest.mark.data("cifar10")
def test_cifar10() -> None:
    for split, size in {"train": 50_000, "test": 10_000}.items():
        source = open_source("cifar10", split)
        assert (source.name, len(source)) == (f"cifar10/{split}", size)
        assert label_counts(source) == sorted((name, size // 10) for name in (
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck"))  # fmt: skip
        reads_again(source)


@pytest.mark.data("mnist")
def test_mnist() -> None:
    # The example published with the data: http://yann.lecun.com/exdb/mnist/
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    for split, counts in {"train": train, "test": test}.items():
        source = open_source("mnist", split)
        assert (source.name, len(source)) == (f"mnist/{split}", sum(counts))
        assert label_counts(source) == [(str(i), n) for i, n in enumerate(counts)]
        reads_again(source)


@pytest.mark.data("fashion-mnist")
def test_fashion_mnist() -> None:
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
             "Bag", "Ankle boot")  # fmt: skip
    for split, size in {"train": 60_000, "test": 10_000}.items():
        source = open_source("fashion-mnist", split)
        assert (source.name, len(source)) == (f"fashion-mnist/{split}", size)
        assert label_counts(source) == sorted((name, size // 10) for name in names)
        reads_again(source)
    # The first training image shows an ankle boot, the first of test too.
    assert next(source.items()).label == "Ankle boot"


@pytest.mark.data("cifar10")
def test_the_labels_of_parquet_are_those_of_the_file() -> None:
    folder = locate("cifar10", None, "test")
    files = sorted(folder.glob("test-*.parquet"))
    if not files:
        pytest.skip("this copy of cifar10 is not in Parquet")
    labels = [label for file in files for label in pq.read_table(file)["label"].to_pylist()]
    names = datasets.DATA_SETS["cifar10"].classes
    found = [item.label for item in open_source("cifar10", "test").items()]
    assert found == [names[label] for label in labels]

"""Invalid values and unknown names of options."""

import subprocess

import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import CONSOLE_SCRIPT, Retr

SEARCH = ["search", "{image}", "--index", "{exact}"]
ENCODE = ["encode", "{images}", "--encoder", "toy", "--out", "made"]
INDEX = ["index", "{embeddings}", "--out", "made"]
EVAL = ["eval", "--queries", "{embeddings}", "--database", "{embeddings}"]


def check(retr: Retr, gallery: Gallery, arguments: list[str], said: list[str]) -> None:
    """Fail unless the command is refused with all of these words."""
    places = {
        "image": gallery.image,
        "images": gallery.images,
        "embeddings": gallery.embeddings,
        "exact": gallery.index("exact"),
        "hnsw": gallery.index("hnsw"),
        "ivf": gallery.index("ivf"),
    }
    message = retr.refused(*(argument.format(**places) for argument in arguments))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*INDEX, "--backend", "hsnw"],
            ["'hsnw'", "did you mean 'hnsw'?", "exact, faiss, hnsw, hnsw-pca, ivf, ivfpq"],
        ),
        (
            ["encode", "{images}", "--encoder", "toyy"],
            [
                "unknown encoder 'toyy'",
                "did you mean 'toy'?",
                "there are: autoencoder, autoencoder-10, clip, exported, exported-text, layers",
            ],
        ),
        (["encode", "{images}", "--encoder", "toy:3"], ["'toy' takes no argument", "'toy:3'"]),
        (["encode", "{images}", "--encoder", ""], ["unknown encoder ''", "toy"]),
        ([*SEARCH, "--encoder", "toyy"], ["unknown encoder 'toyy'", "did you mean 'toy'?"]),
        (
            [*INDEX, "--set", "ef_construktion=3"],
            ["'ef_construktion'", "did you mean 'ef_construction'?", "build_threads", "seed"],
        ),
        ([*INDEX, "--metric", "cosin"], ["'cosin'", "did you mean 'cosine'?", "manhattan"]),
        ([*EVAL, "--metric", "l2"], ["'l2'", "cosine, euclidean, inner_product, manhattan"]),
        (
            [*ENCODE, "--engine", "rai"],
            ["unknown engine 'rai'", "did you mean 'ray'?", "local, ray"],
        ),
        ([*ENCODE, "--address", "head:6379"], ["--address needs --engine ray", "--engine ray"]),
        (
            [*ENCODE, "--dtype", "float33"],
            ["'float33'", "did you mean 'float32'?", "float16, float32"],
        ),
        (
            ["encode", "digits", "--encoder", "toy", "--split", "tset"],
            ["'tset'", "did you mean 'test'?", "test, train"],
        ),
        ([*ENCODE, "--split", "test"], ["no split 'test'"]),
        (
            ["encode", "digit", "--encoder", "toy"],
            ["'digit'", "did you mean 'digits'?", "cifar10, digits, fashion-mnist, mnist"],
        ),
        ([*SEARCH, "--where", "label=purple"], ["'purple'", "blue, green, red"]),
        ([*SEARCH, "--where", "label=rad"], ["'rad'", "did you mean 'red'?"]),
        ([*SEARCH, "--where", "label=red,rad"], ["'rad'", "did you mean 'red'?"]),
        ([*SEARCH, "--where", "lable=red"], ["'lable'", "did you mean 'label'?", "id, label"]),
        ([*SEARCH, "--where", "id=red/99.png"], ["'red/99.png'"]),
        (["serach", "x.png"], ["'serach'", "'search'", "see 'retr --help'"]),
        (["search", "{image}", "--indx", "x"], ["--indx", "--index"]),
    ],
)
def test_unknown_names_are_refused_with_a_list_of_known_names(
    retr: Retr, gallery: Gallery, arguments: list[str], said: list[str]
) -> None:
    check(retr, gallery, arguments, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*SEARCH, "-k", "0"], ["k is 0", "1 to 60"]),
        ([*SEARCH, "-k", "-1"], ["k is -1", "1 to 60"]),
        ([*SEARCH, "-k", "1000000"], ["k is 1,000,000", "1 to 60"]),
        ([*SEARCH, "-k", "61"], ["k is 61", "1 to 60"]),
        ([*SEARCH, "-k", "ten"], ["'-k'", "integer"]),
        ([*EVAL, "-k", "0"], ["-k 0"]),
        ([*EVAL, "--seed", "-1"], ["'--seed'", "greater than or equal to 0"]),
        (["bench", "--seed", "4294967296"], ["'--seed'", "less than or equal to 4294967295"]),
        ([*INDEX, "--seed", "-1"], ["'--seed'", "greater than or equal to 0"]),
        ([*EVAL, "-k", "10,-1"], ["-k 10,-1"]),
        ([*EVAL, "-k", "1,ten"], ["-k 1,ten"]),
        ([*EVAL, "-k", ""], ["-k"]),
        ([*ENCODE, "--limit", "0"], ["limit is 0", "1 or more"]),
        ([*ENCODE, "--limit", "-5"], ["limit is -5", "1 or more"]),
        ([*ENCODE, "--limit", "many"], ["'--limit'", "integer"]),
        ([*INDEX, "--set", "nonsense"], ["--set nonsense", "OPTION=VALUE"]),
        ([*INDEX, "--set", "m="], ["--set m=", "OPTION=VALUE"]),
        ([*INDEX, "--set", "=3"], ["--set =3", "OPTION=VALUE"]),
        ([*INDEX, "--set", "m=many"], ["m", "'many'", "a whole number"]),
        ([*INDEX, "--set", "m=1"], ["m", "1"]),
        ([*INDEX, "--set", "ef=0"], ["ef", "0"]),
        ([*INDEX, "--set", "ef=1.5"], ["ef", "1.5", "a whole number"]),
        ([*INDEX, "--set", "ef=inf"], ["ef", "inf", "a whole number"]),
        ([*INDEX, "--backend", "ivf", "--set", "n_lists=0"], ["n_lists", "0"]),
        ([*INDEX, "--backend", "ivf", "--set", "device=tpu"], ["device", "'tpu'", "cpu"]),
        ([*INDEX, "--backend", "exact", "--set", "ef=3"], ["option", "'ef'", "exact"]),
        ([*INDEX, "--metric", "manhattan"], ["manhattan", "exact or ivf"]),
        ([*INDEX, "--set", "metric=cosine"], ["--metric"]),
        (
            ["search", "{image}", "--index", "{hnsw}", "--set", "m=3"],
            ["option m", "cannot be changed", "ef"],
        ),
        (["search", "{image}", "--index", "{ivf}", "--set", "n_probe=0"], ["n_probe", "0"]),
        (["search", "{image}", "--index", "{hnsw}", "--set", f"ef={10**20}"], ["ef", f"{10**20}"]),
        ([*INDEX, "--set", f"ef_construction={10**20}"], ["ef_construction"]),
        ([*INDEX, "--set", f"build_threads={10**20}"], ["build_threads"]),
        ([*INDEX, "--target-recall", "0.9"], ["--target-recall without --backend auto"]),
        ([*INDEX, "--add", "--backend", "exact"], ["keep the index's backend"]),
        ([*INDEX, "--delete", "label=red"], ["--delete takes no embeddings"]),
        (["index", "--delete", "label=purple", "--out", "{hnsw}"], ["'purple'", "blue, green"]),
        (["index", "--delete", "label=purple", "--out", "{ivf}"], ["'purple'", "blue, green, red"]),
        (["index", "--delete", "label=red", "--out", "nowhere"], ["nowhere is not an index"]),
        ([*INDEX, "--backend", "auto", "--set", "ef=3"], ["auto", "--set"]),
        ([*INDEX, "--backend", "auto", "--target-recall", "1.5"], ["target recall is 1.5"]),
        ([*INDEX, "--backend", "auto", "-k", "0"], ["k is 0"]),
        ([*INDEX, "--backend", "auto", "--max-memory", "2"], ["--max-memory 2", "GB"]),
        ([*INDEX, "--backend", "auto", "--max-memory", "-2GB"], ["--max-memory -2GB", "above 0"]),
        ([*INDEX, "--backend", "auto", "--max-latency", "2GB"], ["--max-latency 2GB", "ms"]),
        ([*INDEX, "--backend", "auto", "--max-latency", "fast"], ["--max-latency fast", "ms"]),
        ([*INDEX, "--backend", "auto", "--budget", "60"], ["--budget 60", "us, ms, s, min, h"]),
        ([*INDEX, "--backend", "auto", "--budget", "0s"], ["--budget 0s", "above 0"]),
        ([*INDEX, "--budget", "60s"], ["--budget without --backend auto"]),
        ([*INDEX, "--backend", "auto", "--queries", "nowhere"], ["nowhere"]),
        ([*SEARCH, "--where", "label"], ["'label'", "label = cat"]),
        ([*SEARCH, "--where", "label="], ["'label='", "a value should stand"]),
        ([*SEARCH, "--where", "=red"], ["'=red'", "the name of a column should stand"]),
        ([*SEARCH, "--where", "width > red"], ["width holds numbers, not 'red'"]),
        ([*SEARCH, "--show", "camara"], ["'camara'", "did you mean 'camera'?"]),
        ([*SEARCH, "--where", ""], ["''"]),
        (["search"], ["nothing to search for", "give an image, or words"]),
        (["info"], ["'DIR'", "retr info --help"]),
        ([*SEARCH, "--index"], ["--index", "requires an argument", "--help"]),
        (["index", "{embeddings}", "--json=yes"], ["--json"]),
    ],
)
def test_invalid_values_are_refused(
    retr: Retr, gallery: Gallery, arguments: list[str], said: list[str]
) -> None:
    check(retr, gallery, arguments, said)


def test_errors_are_the_same_line_with_json_and_quiet(retr: Retr, gallery: Gallery) -> None:
    plain = retr.refused("search", gallery.image, "--index", "nowhere")
    for option in ("--json", "--quiet"):
        assert retr.refused("search", gallery.image, "--index", "nowhere", option) == plain


def test_debug_shows_the_traceback_above_the_error(retr: Retr) -> None:
    finished = subprocess.run(
        [CONSOLE_SCRIPT, "info", "nowhere", "--debug"],
        cwd=retr.cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("Traceback")
    assert finished.stderr.splitlines()[-1].startswith("error: nowhere not found; ")

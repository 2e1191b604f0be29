"""The options of searches on a cluster: refused alone, and with a cluster that does not answer."""

import socket

import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import Retr

CASES = {
    "search --replicas 2": "--replicas needs --engine ray; add it, or leave --replicas out",
    "search --partial": "--partial needs --engine ray",
    "search --hedge": "--hedge needs --engine ray",
    "search --engine ray --hedge": "--hedge needs a second replica to ask; add --replicas 2",
    "search --engine cloud": "unknown engine 'cloud'; there are: local, ray",
    "search --address 127.0.0.1:1": "--address needs --engine ray",
    "search --engine ray --address 127.0.0.1:1": "no Ray cluster at 127.0.0.1:1",
    "search --engine ray --address nowhere": "'nowhere' is not an address",
    "serve --engine ray --port 0": "--port 0 takes any free port",
    "serve --engine ray --address 127.0.0.1:1": "no Ray cluster at 127.0.0.1:1",
}


@pytest.mark.parametrize("arguments", CASES)
def test_options_of_a_cluster_are_refused(arguments: str, retr: Retr, gallery: Gallery) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    command, *rest = arguments.split()
    image = [gallery.images / "red" / "0.png"] if command == "search" else []
    error = retr.refused(command, *image, "--index", gallery.index("exact"), *rest)
    assert CASES[arguments] in error


def test_an_evaluation_on_a_cluster_needs_an_index_and_all_rows(
    retr: Retr, gallery: Gallery
) -> None:
    sides = ("--queries", gallery.embeddings, "--database", gallery.embeddings, "--engine", "ray")
    assert "name one with --index" in retr.refused("eval", *sides)
    index = gallery.index("exact")
    error = retr.refused("eval", *sides, "--index", index, "--partial")
    assert "an evaluation needs all rows" in error


def test_a_port_that_is_taken_is_refused_before_a_cluster_starts(
    retr: Retr, gallery: Gallery
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        index = gallery.index("exact")
        error = retr.refused("serve", "--index", index, "--engine", "ray", "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}" in error

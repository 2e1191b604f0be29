"""`retr serve`: a process that answers, survives many clients, and stops on a signal."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.cli.gallery import Gallery
from tests.cli.running import CONSOLE_SCRIPT, Retr

pytestmark = pytest.mark.usefixtures("launched")

CROWD = 1_000


@pytest.fixture
def service(gallery: Gallery, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [
        str(CONSOLE_SCRIPT),
        "serve",
        "--index",
        str(gallery.index()),
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["indices"] == ["exact"]
            yield process, told["url"]
        finally:
            process.kill()


def resident(process: subprocess.Popen[str]) -> int:
    """Return the resident memory of the process in bytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_many_clients_are_served_or_told_to_retry(
    service: tuple[subprocess.Popen[str], str], gallery: Gallery
) -> None:
    process, url = service
    image = gallery.image.read_bytes()

    async def ask() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(limits=limits, timeout=60, base_url=url) as client:
            await client.post("/api/search", files={"image": ("a.png", image, "image/png")})
            before.append(resident(process))
            return await asyncio.gather(
                *(
                    client.post("/api/search", files={"image": ("a.png", image, "image/png")})
                    for _ in range(CROWD)
                )
            )

    before: list[int] = []
    answers = asyncio.run(ask())
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) <= {200, 503} and counts[200] > 0, counts
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all("retry in a second" in answer.json()["error"] for answer in refused)
    assert resident(process) - before[0] < 200_000_000
    again = httpx2.post(f"{url}api/search", files={"image": ("a.png", image, "image/png")})
    assert again.status_code == 200, "the places are free again"


def test_serve_ends_silently_when_interrupted(service: tuple[subprocess.Popen[str], str]) -> None:
    process, url = service
    with urllib.request.urlopen(url, timeout=60) as page:
        assert "<title>retr: image search</title>" in page.read().decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, "to be stopped is how it ends"
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_port_in_use_is_refused(retr: Retr, gallery: Gallery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = retr.refused("serve", "--index", gallery.index(), "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in error


def test_serve_without_an_index_is_refused(retr: Retr) -> None:
    assert "run 'retr index' first" in retr.refused("serve", "--port", "0")
    assert "is not an index" in retr.refused("serve", "--index", ".", "--port", "0")

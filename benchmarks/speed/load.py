"""Load `retr serve`: `python -m benchmarks.speed.load INDEX [--clients 200] [--seconds 60]`.

Clients request the neighbors of rows of the index, as the page does, each again after its response.
In the same run, the same index is searched without a service. Other clients send a body one byte at
a time, and some connect without sending anything; they must not slow the service. Prints errors,
requests per second, latencies, their ratio to the bare search, and the growth of the service's
memory.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.suite import machine
from retrieval.errors import BadInput
from retrieval.index.searching import Searcher

K = 10
SLOW_CLIENTS = 20  # clients that send a byte per second
SILENT_CONNECTIONS = 100  # connections that send nothing
BARE_SECONDS = 5.0


def bare(searcher: Searcher, vectors: Any) -> list[float]:
    """Return the seconds of single searches with names, one after the other, as in the service."""
    times: list[float] = []
    end = time.perf_counter() + BARE_SECONDS
    while (began := time.perf_counter()) < end:
        row = len(times) % len(vectors)
        searcher.search(vectors[row : row + 1], K)
        times.append(time.perf_counter() - began)
    return times


def resident(pid: int) -> int:
    """Return the resident memory of the process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


async def client(
    port: int, paths: list[str], until: float, seed: int, seen: "Counter[str]", times: list[float]
) -> None:
    """Send requests until then, over one connection; record answers and their times."""
    draw = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < until:
            path = draw.choice(paths)
            began = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length is not None
            await reader.readexactly(int(length[1]))
            times.append(time.perf_counter() - began)
            seen[head.split(b" ", 2)[1].decode()] += 1
    except (OSError, asyncio.IncompleteReadError) as error:
        seen[type(error).__name__] += 1
    finally:
        writer.close()


async def slow(port: int, until: float) -> None:
    """Send an upload, a byte a second."""
    while time.perf_counter() < until:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        try:
            while time.perf_counter() < until:
                writer.write(b"-")
                await writer.drain()
                await asyncio.sleep(1)
        except OSError:
            pass  # the client closed it
        finally:
            writer.close()


async def load(port: int, paths: list[str], clients: int, seconds: float, pid: int) -> Any:
    """Run all clients, and return their results, response times, and the service's memory."""
    seen: Counter[str] = Counter()
    times: list[float] = []
    memory: list[int] = []
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(SILENT_CONNECTIONS)]
    warm_until = time.perf_counter() + 5
    await asyncio.gather(
        *(client(port, paths, warm_until, seed, Counter(), []) for seed in range(clients))
    )
    until = time.perf_counter() + seconds

    async def watch() -> None:
        while time.perf_counter() < until:
            memory.append(resident(pid))
            await asyncio.sleep(1)

    await asyncio.gather(
        watch(),
        *(slow(port, until) for _ in range(SLOW_CLIENTS)),
        *(client(port, paths, until, seed, seen, times) for seed in range(clients)),
    )
    for connection in silent:
        connection.close()
    return seen, np.array(times), memory


def main() -> None:
    """Print the measurements. Exit code 1 if a request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="index folder")
    parser.add_argument("--embeddings", type=Path, help="embeddings of the index", required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    try:
        searcher = Searcher.open(given.index)
    except BadInput as problem:
        raise SystemExit(str(problem)) from None
    from retrieval.storage.sets.embeddings import open_embeddings

    vectors = open_embeddings(given.embeddings).vectors()
    alone = np.array(bare(searcher, vectors))
    ids = searcher.opened.rows["id"].to_pylist()[:5000]
    paths = [f"/api/items/{quote(each, safe='')}/neighbors?k={K}" for each in ids]
    command = [sys.executable, "-m", "cli.main", "serve", "--index", str(given.index)]
    command += ["--embeddings", str(given.embeddings), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        address = re.search(r":(\d+)/", service.stdout.readline())
        assert address is not None, "the service did not start"
        port = int(address[1])
        time.sleep(3)  # time to open the encoder
        seen, times, memory = asyncio.run(
            load(port, paths, given.clients, given.seconds, service.pid)
        )
        service.send_signal(signal.SIGINT)
        ended = service.wait(60)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    alone_p50, alone_p99 = np.quantile(alone, [0.5, 0.99])
    rate, alone_rate = len(times) / given.seconds, 1 / alone.mean()
    waiting = given.clients / alone_rate
    tenth = max(1, len(memory) // 10)
    print(
        f"{machine.describe()['cpu']}, {os.cpu_count()} cores\n"
        f"bare search: {alone_rate:,.0f}/s, p50 {1e3 * alone_p50:.2f} ms, p99 "
        f"{1e3 * alone_p99:.2f} ms\n"
        f"{given.clients} clients for {given.seconds:.0f} s with {SLOW_CLIENTS} slow and "
        f"{SILENT_CONNECTIONS} silent ones: {dict(seen)}; exit code {ended}\n"
        f"{rate:,.0f} requests/s, {rate / alone_rate:.3f} of the bare search\n"
        f"p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms: {p99 / waiting:.1f} times the "
        f"{1e3 * waiting:.0f} ms that {given.clients} bare searches take\n"
        f"memory {np.mean(memory[:tenth]) / 1e6:,.0f} MB at first, "
        f"{np.mean(memory[-tenth:]) / 1e6:,.0f} MB at last"
    )
    if set(seen) != {"200"} or ended:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

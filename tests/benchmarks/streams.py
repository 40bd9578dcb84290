"""How many streams `orcast serve` feeds in time: ``python -m tests.benchmarks.streams``.

So many clients at once ask a deployment that gives them 20 and more tokens a second each, for as
long as is said, and each asks again when it has its answer. The server is a process of its own, the
clients are this one: raw sockets, an epoll, no more parsing than counting. How late a token is, its
event says itself (`--due-times` of the server): from when it was due until it is read here, of an
event with several tokens from when the first was due. Processor time is told apart for both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SCENARIO = """
name: streams
model: llama-3.1-70b
hardware: {gpu: h200-sxm, tensor_parallel: 2}
engine: {generation: vllm, max_num_seqs: 1024, max_model_len: 8192}
latency: {source: roofline}
cluster: {replicas: REPLICAS, router: least_outstanding}
workload:
  arrivals: {process: all_at_once}
  lengths:
    prompt: {distribution: fixed, tokens: 64}
    output: {distribution: fixed, tokens: 1000}
  num_requests: 1
"""
_DUE = b": due "
_TICKS = os.sysconf("SC_CLK_TCK")
_READ_BYTES = 1 << 18


@dataclass
class Server:
    """`orcast serve`, and what it takes."""

    address: tuple[str, int]
    process: subprocess.Popen[str]

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def late_ms(self) -> float:
        """By its own account, at most, of 99 % of the latest iterations' tokens when written."""
        url = "http://{}:{}/live/state".format(*self.address)
        with urllib.request.urlopen(url) as answer:
            return float(json.loads(answer.read())["delay_ms"])

    @property
    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def served(scenario: str, *options: str) -> Iterator[Server]:
    """A server, until it is needed no more."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orcast", "serve", scenario, "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    found = re.search(r"http://([^:/]+):(\d+)/v1", process.stdout.readline())
    assert found, "orcast serve did not start"
    try:
        yield Server((found[1], int(found[2])), process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


@dataclass(slots=True)
class Seen:
    """What came, of all clients."""

    answers: int = 0
    late_s: array[float] = field(default_factory=lambda: array("d"))


class Clients:
    """So many connections, each with a request under way."""

    def __init__(self, address: tuple[str, int], count: int, *, tokens: tuple[int, int]) -> None:
        self._rng, self._tokens = np.random.default_rng(7), tokens
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self.seen = Seen()
        for _ in range(count):
            connection = socket.create_connection(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def ask(self, number: int) -> None:
        """The next request over a connection: a prompt that no other begins with."""
        body = {
            "prompt": self._rng.integers(1, 30_000, size=64).tolist(), "stream": True,
            "max_tokens": int(self._rng.integers(*self._tokens)), "ignore_eos": True,
        }  # fmt: skip
        data = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._sockets[number].sendall(head.encode() + data)

    def start(self, over_s: float) -> None:
        """All of them ask, one after the other."""
        began_s = time.monotonic()
        for place, number in enumerate(list(self._sockets)):
            self.read_until(began_s + over_s * place / len(self._sockets))
            self.ask(number)

    def read_until(self, end_s: float) -> None:
        """Read what comes until then, on this machine's monotonic clock."""
        epoll, seen, clock, late = self._epoll, self.seen, time.time, self.seen.late_s.append
        while (left_s := end_s - time.monotonic()) > 0:
            for number, _ in epoll.poll(left_s):
                data = os.read(number, _READ_BYTES)
                now_s = clock()
                at = data.find(_DUE)
                while at >= 0:
                    end = data.index(b"\n", at)
                    late(now_s - float(data[at + len(_DUE) : end]))
                    at = data.find(_DUE, end)
                if data.endswith(b"0\r\n\r\n"):
                    seen.answers += 1
                    self.ask(number)
                assert data, "the server hung up"

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._epoll.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-s", type=float, default=15.0, help="before anything is counted")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, nargs=2, default=(500, 1500), help="of an answer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "scenario.yaml"
        scenario.write_text(SCENARIO.replace("REPLICAS", str(given.replicas)))
        run(given, str(scenario))


def run(given: argparse.Namespace, scenario: str) -> None:
    """Serve, warm up and measure."""
    with served(scenario, "--speed", str(given.speed), "--due-times") as server:
        clients = Clients(server.address, given.streams, tokens=given.tokens)
        clients.start(over_s=min(5.0, given.warm_s))
        clients.read_until(time.monotonic() + given.warm_s)
        clients.seen = Seen()
        print(
            f"{given.streams} streams, {given.replicas} replicas, {os.cpu_count()} cores",
            flush=True,
        )
        measure(server, clients, given.seconds)
        clients.close()


def measure(server: Server, clients: Clients, seconds: float) -> None:
    """Read for so long, and say what came."""
    began_s, server_s, client_s = time.monotonic(), server.cpu_s, time.process_time()
    rss_mib = [server.rss_mib]
    while (now_s := time.monotonic()) < began_s + seconds:
        clients.read_until(min(now_s + 10.0, began_s + seconds))
        rss_mib.append(server.rss_mib)
    passed_s, seen = time.monotonic() - began_s, clients.seen
    server_s, client_s = server.cpu_s - server_s, time.process_time() - client_s
    own_ms = server.late_ms
    late_ms, events = np.array(seen.late_s) * 1e3, len(seen.late_s)
    at = " ".join(f"{name} {np.percentile(late_ms, name):.2f}" for name in (50, 90, 99, 99.9))
    print(f"  {events / passed_s:,.0f} events/s, {seen.answers} answers, in {passed_s:.0f} s")
    print(f"  late by (ms): mean {late_ms.mean():.2f}, percentiles {at}, most {late_ms.max():.2f}")
    print(f"  by the server's own account, when written: 99 % late by at most {own_ms:.2f} ms")
    for name, spent_s in (("server", server_s), ("clients", client_s)):
        print(f"  {name}: {spent_s / passed_s:.0%} of a core, "
              f"{1e6 * spent_s / events:.1f} us an event")  # fmt: skip
    print("  server's memory every 10 s (MiB):", *(f"{one:.1f}" for one in rss_mib))


if __name__ == "__main__":
    main()

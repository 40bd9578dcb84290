"""What a client measures of `orcast serve`, beside the forecast of the very same arrivals:
``python -m tests.benchmarks.served_load [SCENARIO] [--requests 2000]``.

The scenario's requests are sent at its own times over raw sockets by one epoll; TTFT, TPOT, E2E and
throughput are what vLLM's `bench serve` calls so: TTFT from before a request is sent to its first
event, E2E to its last, TPOT the rest of that over all tokens but the first. The forecast is that of
the arrivals which the server has recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orcast.composed import compose
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from sim.workload import Workload
from tests.benchmarks.streams import served

_ALLOWED_MS, _ALLOWED = 3.0, 0.02
_DRAWN = 1 << 15
_END = b"0\r\n\r\n"


@dataclass(slots=True)
class Timed:
    """One request as its client saw it."""

    tokens: int
    sent_s: float
    first_s: float = 0.0
    last_s: float = 0.0


class OpenLoop:
    """Sends requests when it is time, whatever has been answered; a connection is used again."""

    def __init__(self, address: tuple[str, int], workload: Workload) -> None:
        self._address = address
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._free: deque[int] = deque()
        self._under_way: dict[int, Timed] = {}
        rng = np.random.default_rng(1)
        self._sent = [
            self._request(rng.integers(1, _DRAWN, size=prompt).tolist(), output)
            for prompt, output in zip(
                workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
            )
        ]
        self._arrival_s = workload.arrival_s.tolist()
        self._tokens = workload.output_tokens.tolist()

    @staticmethod
    def _request(prompt: list[int], output: int) -> bytes:
        body = {"prompt": prompt, "stream": True, "max_tokens": output, "ignore_eos": True}
        data = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    def run(self) -> list[Timed]:
        """All of them, to their ends."""
        began_s = time.monotonic() + 0.1
        done: list[Timed] = []
        for number, at_s in enumerate(self._arrival_s):
            self._read(began_s + at_s, done)
            connection = self._connection()
            timed = Timed(self._tokens[number], time.monotonic())
            connection.sendall(self._sent[number])
            connection.setblocking(False)
            self._under_way[connection.fileno()] = timed
        while self._under_way:
            self._read(time.monotonic() + 1.0, done)
        for connection in self._sockets.values():
            connection.close()
        return done

    def _connection(self) -> socket.socket:
        if self._free:
            connection = self._sockets[self._free.popleft()]
            connection.setblocking(True)
            return connection
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)
        return connection

    def _read(self, end_s: float, done: list[Timed]) -> None:
        while (left_s := end_s - time.monotonic()) > 0:
            for number, _ in self._epoll.poll(left_s):
                data = os.read(number, 1 << 18)
                assert data, "the server hung up"
                timed = self._under_way[number]
                if b'"text"' in data:
                    timed.last_s = time.monotonic()
                    timed.first_s = timed.first_s or timed.last_s
                if data.endswith(_END):
                    done.append(self._under_way.pop(number))
                    self._free.append(number)


def measured(done: list[Timed]) -> dict[str, float]:
    """Under the names of a run's summary."""
    figures = {
        "ttft": np.array([one.first_s - one.sent_s for one in done]),
        "tpot": np.array([(one.last_s - one.first_s) / (one.tokens - 1) for one in done
                          if one.tokens > 1]),
        "e2el": np.array([one.last_s - one.sent_s for one in done]),
    }  # fmt: skip
    passed_s = max(one.last_s for one in done) - min(one.sent_s for one in done)
    found = {"request_throughput": len(done) / passed_s}
    found["output_throughput"] = sum(one.tokens for one in done) / passed_s
    for name, times_s in figures.items():
        found[f"mean_{name}_ms"] = 1e3 * float(times_s.mean())
        found[f"p99_{name}_ms"] = 1e3 * float(np.percentile(times_s, 99))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default="quickstart")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    overrides = [*given.set, f"workload.num_requests={given.requests}"]
    scenario, origin = load_scenario(given.scenario, overrides)
    workload = deploy(scenario, origin=origin, compose=compose).workload
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run"
        options = [part for one in overrides for part in ("--set", one)]
        with served(given.scenario, *options, "--record", str(record)) as server:
            loop = OpenLoop(server.address, workload)
            began_s, server_s, client_s = time.monotonic(), server.cpu_s, time.process_time()
            done = loop.run()
            passed_s, spent_s = time.monotonic() - began_s, server.cpu_s - server_s
            client_s = time.process_time() - client_s
        again, recorded = load_scenario(str(record / "scenario.yaml"))
        expected = forecast(again, origin=recorded, compose=compose).summary
    print(f"{given.scenario}, {len(done)} requests in {passed_s:.0f} s, {os.cpu_count()} cores: "
          f"server {spent_s / passed_s:.0%} of one, client {client_s / passed_s:.0%}")  # fmt: skip
    for name, value in measured(done).items():
        wanted = expected[name]
        allowed = _ALLOWED * wanted + (_ALLOWED_MS if name.endswith("_ms") else 0.0)
        verdict = "within" if abs(value - wanted) <= allowed else "beyond"
        print(f"  {name:20} measured {value:9.2f}, forecast {wanted:9.2f}: {value - wanted:+7.2f}, "
              f"{verdict} {allowed:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

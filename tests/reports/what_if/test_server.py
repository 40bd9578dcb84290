"""The page's server under clients that send nothing, too much, or leave."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import needs

pytest.importorskip("dash", reason=needs.DASH)

from reports.what_if.server import MOST_BODY_BYTES, has_left
from tests.reports.what_if.page_server import served


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {len(body)}".encode()]


def connect(url: str) -> socket.socket:
    at = urlsplit(url)
    return socket.create_connection((at.hostname or "", at.port or 0), timeout=5)


def get(url: str) -> str:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=5)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def answer_to(url: str, sent: bytes) -> bytes:
    with connect(url) as client:
        client.sendall(sent)
        received = b""
        while more := client.recv(1 << 16):
            received += more
        return received


def test_half_open_connections_do_not_keep_others_waiting() -> None:
    with served(echo, most_connections=50) as url:
        idle = [connect(url) for _ in range(200)]
        for client in idle[::2]:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        began_s = time.monotonic()
        assert get(url) == "GET 0"
        assert time.monotonic() - began_s < 2
        for client in idle:
            client.close()


def test_a_body_arrives_whole() -> None:
    with served(echo) as url:
        body = b"x" * MOST_BODY_BYTES
        said = answer_to(
            url, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert said.startswith(b"HTTP/1.1 200") and said.endswith(
            b"%d" % len(body) + b"\r\n0\r\n\r\n"
        )


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (b"Content-Length: 400000000", b"413"),
        (b"Content-Length: 99999999999999999999999", b"400"),
        (b"Content-Length: -1", b"400"),
        (b"Content-Length: \xb2", b"400"),
        (b"Transfer-Encoding: chunked", b"411"),
        (b"Expect: 100-continue\r\nContent-Length: 400000000", b"413"),
    ],
)
def test_a_body_out_of_bounds_is_refused_unread(headers: bytes, code: bytes) -> None:
    with served(echo) as url:
        said = answer_to(url, b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 " + code)


def test_most_of_a_large_body_is_never_taken() -> None:
    with served(echo) as url, connect(url) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 400_000_000:
                sent += client.send(b"0" * 2**20)
    assert sent < 100_000_000


def test_no_request_makes_the_server_say_anything(capfd: pytest.CaptureFixture[str]) -> None:
    with served(echo) as url:
        for sent in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n",
                     b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
                     b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"):  # fmt: skip
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in answer_to(url, sent)[:16]
        connect(url).close()
        assert get(url) == "GET 0"
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_the_application_sees_that_its_client_has_left() -> None:
    seen, here = list[bool](), threading.Event()

    def waits(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        left = has_left(environ["werkzeug.socket"])
        seen.append(left())
        here.set()
        end_s = time.monotonic() + 5
        while not left() and time.monotonic() < end_s:
            time.sleep(0.01)
        seen.append(left())
        start_response("200 OK", [])
        return []

    with served(waits) as url:
        client = connect(url)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert here.wait(5)
        client.close()
        end_s = time.monotonic() + 5
        while len(seen) < 2 and time.monotonic() < end_s:
            time.sleep(0.01)
    assert seen == [False, True]

"""The HTTP server of the what-if page: threads, with bounds on what a client may hold of them.

Werkzeug's server, which comes with Dash, waits for ever for a request that does not come, and reads
whatever body is sent. Here a connection gets `WAIT_S` for each piece of its request, a body at most
`MOST_BODY_BYTES`, and where `MOST_CONNECTIONS` are open, a new one replaces the oldest that has not
sent its request yet.
"""

import contextlib
import io
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

MOST_BODY_BYTES = 2 * 2**20
MOST_CONNECTIONS = 256
WAIT_S = 10.0
_LINGER_S, _LINGER_BYTES = 0.5, 4 * 2**20


class PageServer(ThreadedWSGIServer):
    """Serves a WSGI application on a socket that listens already; see `serve_forever`."""

    def __init__(
        self, listening: socket.socket, app: Any, *, most_connections: int = MOST_CONNECTIONS
    ) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, bool] = {}  # -> whether its request has come; oldest first
        self._most = most_connections
        host, port = listening.getsockname()[:2]
        super().__init__(host, port, app, _Handler, fd=listening.fileno())

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            room = len(self._open) < self._most
            if not room:
                idle = next((known for known, has_come in self._open.items() if not has_come), None)
                if idle is not None:
                    del self._open[idle]
                    _hang_up(idle)
                    room = True
            if room:
                self._open[request] = False
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def has_come(self, request: socket.socket) -> None:
        """The whole request of this connection has been read: it will be answered."""
        with self._lock:
            if request in self._open:
                self._open[request] = True

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            super().log(type, message, *args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to say: a fault of the application is logged by itself, the rest is the line."""


class _Handler(WSGIRequestHandler):
    timeout = WAIT_S
    server: PageServer

    def handle_expect_100(self) -> bool:
        """Not before the size of what is announced is known."""
        return True

    def run_wsgi(self) -> None:
        """Read the body, within bounds, before the application sees the request."""
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") is not None:
            return self._refuse(411, "Length Required")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            return self._refuse(400, "Bad Request")
        if int(length) > MOST_BODY_BYTES:
            return self._refuse(413, "Content Too Large")
        if int(length) and self.headers.get("Expect", "").strip().lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        del self.headers["Expect"]
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None  # it hung up
        self.server.has_come(self.connection)
        line, self.rfile = self.rfile, io.BufferedReader(io.BytesIO(body))  # type: ignore[arg-type]
        try:
            super().run_wsgi()
        finally:
            self.rfile = line
            self.close_connection = True
        return None

    def _refuse(self, code: int, words: str) -> None:
        """Answer, and let go; what still comes is dropped for a moment, so that it reads this."""
        self.close_connection = True
        self.wfile.write(
            f"HTTP/1.1 {code} {words}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER_S)
        end_s, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
        with contextlib.suppress(OSError):
            while left > 0 and time.monotonic() < end_s:
                left -= len(self.connection.recv(1 << 16)) or left

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing of what clients do."""

    def log_error(self, format: str, *args: Any) -> None:
        """Say nothing of what clients do wrong."""


def has_left(connection: socket.socket | None) -> Callable[[], bool]:
    """Whether a client that waits for its answer has closed its connection."""
    if connection is None:
        return lambda: False
    ready = select.poll()
    ready.register(connection, select.POLLIN)

    def left() -> bool:
        try:
            return bool(ready.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    return left


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

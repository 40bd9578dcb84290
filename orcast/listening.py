"""Sockets that local servers listen on."""

from __future__ import annotations

import errno
import socket

from scenarios.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `port`, or any free one for 0. InputError where it cannot."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}") from None
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise InputError(f"--port {port}: {error.strerror}") from None
        raise InputError(f"--port {port}: in use; name another, or 0 for any free one") from None
    return listening

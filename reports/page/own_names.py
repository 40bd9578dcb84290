"""Whether a request speaks to a page's server by a name of its own.

A page from elsewhere can send requests here, and may have its own name point to this machine (DNS
rebinding): then its requests carry that name as their Host. An address cannot be made to point
elsewhere, so one that listens at all addresses can be spoken to by any.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/?#\\\s]+)(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class OwnNames:
    """Of a server; addresses of version 6 in brackets."""

    names: frozenset[str]
    any_address: bool = False

    def addressed(self, host: str, origin: str | None) -> bool:
        """Whether a request with these headers is for this server, of no page but its own."""
        found = _HOST.fullmatch(host)
        if found is None or origin not in (None, f"http://{host}"):
            return False
        name = found[1]
        return name in self.names or (self.any_address and _is_address(name))


LOOPBACK = OwnNames(frozenset(("127.0.0.1", "localhost")))


def names_of(host: str, address: str) -> OwnNames:
    """Of a server told to listen at `host`, which is `address`: those, and the machine's own."""
    names = {"127.0.0.1", "localhost", "[::1]", _bracketed(host.lower()), _bracketed(address)}
    if not ip_address(address).is_unspecified:
        return OwnNames(frozenset(names))
    return OwnNames(frozenset(names | {socket.gethostname().lower()}), any_address=True)


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True

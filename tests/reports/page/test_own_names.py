"""Who may change what a page's server does, by the names that requests carry."""

from __future__ import annotations

import socket

import pytest

from reports.page.own_names import OwnNames, names_of

AT_HOME = names_of("127.0.0.1", "127.0.0.1")
NAMED = names_of("Gpu-Box.lan", "192.0.2.7")
EVERYWHERE = names_of("0.0.0.0", "0.0.0.0")


@pytest.mark.parametrize(
    ("own", "host"),
    [
        (AT_HOME, "127.0.0.1:8000"),
        (AT_HOME, "localhost"),
        (AT_HOME, "[::1]:8000"),
        (NAMED, "gpu-box.lan:8000"),
        (NAMED, "192.0.2.7:80"),
        (names_of("::", "::"), "[2001:db8::7]:8000"),
        (EVERYWHERE, "192.0.2.9:8000"),
        (EVERYWHERE, f"{socket.gethostname().lower()}:8000"),
    ],
)
def test_a_server_is_spoken_to_by_its_own_names(own: OwnNames, host: str) -> None:
    assert own.addressed(host, None)
    assert own.addressed(host, f"http://{host}")
    assert not own.addressed(host, "http://elsewhere.example")


@pytest.mark.parametrize("own", [AT_HOME, NAMED, EVERYWHERE], ids=["home", "named", "everywhere"])
@pytest.mark.parametrize(
    "host",
    ["elsewhere.example", "elsewhere.example:8000", "127.0.0.1.elsewhere.example", "localhost.",
     "127.0.0.1:80@elsewhere.example", "127.0.0.1#elsewhere.example", "", "[]", "127.1", "[::1",
     "2130706433", "localhost:80:80", "localhost:", " localhost"],
)  # fmt: skip
def test_it_is_not_by_the_name_of_a_page_from_elsewhere(own: OwnNames, host: str) -> None:
    """Not even where that page's origin is the same name: it may have been made to point here."""
    assert not own.addressed(host, f"http://{host}")
    assert not own.addressed(host, None)


def test_other_addresses_are_not_where_it_listens() -> None:
    assert not AT_HOME.addressed("192.0.2.9:8000", None)
    assert not NAMED.addressed("192.0.2.9:8000", None)

"""Standings find whom a scan over all replicas would find."""

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from sim.cluster.standings import Standings


class Counted:
    """What standings ask of a replica, with a figure that changes."""

    def __init__(self) -> None:
        self.figure = 0
        self.is_noted = False
        self.changed: list[Counted] = []

    def note_changes_in(self, changed: list["Counted"]) -> None:
        self.changed, self.is_noted = changed, False

    def become(self, figure: int) -> None:
        self.figure = figure
        if not self.is_noted:
            self.is_noted = True
            self.changed.append(self)


def standings(replicas: list[Counted]) -> Standings:
    return Standings(cast(Any, replicas), lambda one: (cast(Any, one).figure,))


@given(
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.booleans()), max_size=300),
)
def test_the_first_is_the_one_that_a_scan_finds(
    count: int, changes: list[tuple[int, int, bool]]
) -> None:
    replicas = [Counted() for _ in range(count)]
    found = standings(replicas)
    for number, figure, looks in changes:
        replicas[number % count].become(figure)
        if looks:
            least = min(range(count), key=lambda at: replicas[at].figure)
            assert found.first() == ((replicas[least].figure,), least)


def test_who_is_taken_out_is_found_again_once_put_back() -> None:
    replicas = [Counted() for _ in range(3)]
    found = standings(replicas)
    for place in range(3):
        assert found.first() == ((0,), place)
        found.take_out(place)
    assert found.first() is None
    replicas[1].become(5)
    for place in (2, 1):
        found.put_back(place)
    assert found.first() == ((0,), 2)

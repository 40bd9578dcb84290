"""Contiguous KV memory: pieces that cover the cache, and the waste that they bring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.conservation import ConservationError
from sim.engine.policy import scheduler_class
from sim.engine.simulation import simulate
from sim.kv.contiguous import (
    BuddyAllocator,
    ContiguousAllocator,
    FirstFitAllocator,
    largest_piece,
)
from sim.latency.protocol import FixedLatency
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import assert_same_records, engines, run, workloads

KINDS: dict[str, type[ContiguousAllocator]] = {
    "buddy": BuddyAllocator,
    "first_fit": FirstFitAllocator,
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_cover_the_cache_whatever_comes_and_goes(kind: str, data: st.DataObject) -> None:
    num_blocks = data.draw(st.integers(1, 70))
    allocator = KINDS[kind](num_blocks, 4)
    holes = allocator._holes()
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        if len(tables) and data.draw(st.booleans()):
            allocator.free(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
        else:
            count = data.draw(st.integers(1, num_blocks))
            if allocator.fits(count):
                table: list[int] = []
                allocator.allocate(table, count)
                assert len(table) >= count
                tables.append(table)
        allocator.check(tables)
    for table in tables:
        allocator.free(table)
    assert sorted(allocator._holes()) == sorted(holes), "what was free is joined again"


def test_a_buddy_is_a_power_of_two_at_a_multiple_of_its_size() -> None:
    allocator = BuddyAllocator(13, 16)
    tables: list[list[int]] = [[], [], []]
    for table, count in zip(tables, (3, 1, 2), strict=True):
        allocator.allocate(table, count)
    assert tables == [[8, 9, 10, 11], [12], [0, 1]]
    assert allocator.fits(4)
    assert not allocator.fits(5), "six blocks are free, and five of them are no piece"
    assert not allocator.could_fit(9)
    assert allocator.could_fit(largest_piece("buddy", 13))


def test_first_fit_takes_the_lowest_hole_that_is_large_enough() -> None:
    allocator = FirstFitAllocator(10, 16)
    one, two, three = ([], [], [])  # type: tuple[list[int], list[int], list[int]]
    for table, count in ((one, 3), (two, 4), (three, 1)):
        allocator.allocate(table, count)
    allocator.free(one)
    assert (allocator.num_free, allocator.fits(4)) == (5, False), "two holes, of three and two"
    allocator.allocate(one, 3)
    assert one == [0, 1, 2]


def test_the_check_sees_a_table_in_pieces_and_a_block_held_twice() -> None:
    allocator = FirstFitAllocator(8, 16)
    table: list[int] = []
    allocator.allocate(table, 3)
    for wrong in ([[0, 2]], [table, table], [[0, 1]]):
        with pytest.raises(ConservationError):
            allocator.check(wrong)


@pytest.mark.parametrize("placement", KINDS)
@settings(deadline=None)
@given(workload=workloads(), engine=engines())
def test_leap_equals_step_with_contiguous_memory(
    placement: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    config = replace(config, placement=placement)
    leaps, steps = (
        run(workload, config, scheduler="orca", num_blocks=num_blocks, leap=leap)
        for leap in (True, False)
    )
    assert_same_records(leaps, steps)


def test_contiguous_memory_needs_a_policy_that_reserves() -> None:
    with pytest.raises(ValueError, match="placement buddy needs a scheduler that sets"):
        scheduler_class("paged", EngineConfig(placement="buddy"))
    with pytest.raises(ValueError, match="placement 'here'; allowed: anywhere, buddy, first_fit"):
        EngineConfig(placement="here")


class Bitmap:
    """The same memory, told again from a map of its slots whenever somebody asks for a piece."""

    def __init__(self, slots: int, *, buddies: bool) -> None:
        self.free = np.ones(slots, dtype=bool)
        self.buddies = buddies

    def place(self, wanted: int) -> slice | None:
        if not self.buddies:
            run = 0
            for at, free in enumerate(self.free.tolist()):
                run = run + 1 if free else 0
                if run == wanted:
                    return slice(at + 1 - wanted, at + 1)
            return None
        size = 1
        while size < wanted:
            size *= 2
        whole = size
        while whole <= len(self.free):  # the smallest free piece that is not a larger one's half
            for start in range(0, len(self.free) - whole + 1, whole):
                parent = start // (2 * whole) * 2 * whole
                if self._all_free(start, whole) and not self._all_free(parent, 2 * whole):
                    return slice(start, start + size)
            whole *= 2
        return None

    def _all_free(self, start: int, size: int) -> bool:
        return start + size <= len(self.free) and bool(self.free[start : start + size].all())


def waste(
    prompts: list[int], outputs: list[int], reserved: list[int], memory: Bitmap, block: int
) -> float:
    """Share of slots without a token when requests come to `memory` in order, one by one."""
    queue = list(zip(prompts, outputs, reserved, strict=True))
    running: list[list[int]] = []  # tokens stored, tokens to come
    places: list[slice] = []
    used = rounds = 0
    while queue or running:
        while queue:
            prompt, output, wanted = queue[0]
            place = memory.place(-(-wanted // block))
            if place is None:
                break
            memory.free[place] = False
            running.append([prompt, output])
            places.append(place)
            queue.pop(0)
        used += sum(tokens for tokens, _ in running)
        rounds += 1
        for number in reversed(range(len(running))):
            running[number][0] += 1
            running[number][1] -= 1
            if not running[number][1]:
                memory.free[places.pop(number)] = True
                del running[number]
    return 1 - used / (rounds * len(memory.free) * block)


@pytest.mark.parametrize("placement", KINDS)
@pytest.mark.parametrize("reservation", ["max_model_len", "pow2", "oracle"])
def test_the_waste_is_that_of_an_independent_simulation(placement: str, reservation: str) -> None:
    rng = np.random.default_rng(11)
    prompts = np.clip(rng.lognormal(3.0, 1.0, 150), 1, 200).astype(int)
    outputs = np.clip(rng.lognormal(4.0, 0.8, 150), 1, 250).astype(int)
    config = EngineConfig(
        block_size=8, max_model_len=512, reservation=reservation, placement=placement
    )
    reserved = [
        {
            "max_model_len": 512,
            "pow2": min(prompt + 2 ** int(np.ceil(np.log2(output))), 512),
            "oracle": prompt + output - 1,
        }[reservation]
        for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True)
    ]
    told = waste(
        prompts.tolist(),
        outputs.tolist(),
        reserved,
        Bitmap(330, buddies=placement == "buddy"),
        8,
    )
    iterations = simulate(
        Workload(np.zeros(150), prompts, outputs),
        config,
        FixedLatency(0.01),
        scheduler="orca",
        num_blocks=330,
        check=True,
    ).iterations
    kinds = ("used", "reserved", "fragmentation", "free")
    slots = {kind: iterations[f"kv_{kind}_tokens"].sum() for kind in kinds}
    assert 1 - slots["used"] / sum(slots.values()) == pytest.approx(told, abs=0.02)

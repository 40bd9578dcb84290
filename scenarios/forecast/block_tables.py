"""A small run's block tables over time, from simulating it once more with a recorder watching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.forecast.deployment import Deployment
from scenarios.forecast.served import serve
from sim.engine.block_history import BlockRecorder, EngineHistory
from sim.latency.pipeline import PipelineLatency
from sim.records import Records

MAX_REQUESTS = 64
MAX_BLOCKS = 2_000
MAX_ITERATIONS = 3_000


@dataclass(frozen=True, slots=True)
class BlockTables:
    """Tables of engines, each with its iterations numbered from 0; spans are half-open.

    ``starts_s`` and ``ends_s``: of each engine's iterations. ``tables``: engine, request, sample.
    ``holds``: table, position in it, block, first iteration, the one it ends before. ``fills``:
    table, first iteration, the one it ends before, used tokens, reserved tokens in the first;
    then one more is used each iteration (and one less reserved, where any is) if ``growing``.
    ``idle``: engine, block, first iteration, the one it ends before, of blocks that no table held
    and whose content the prefix cache kept.
    """

    num_blocks: int  # of each engine
    block_size: int
    starts_s: list[np.ndarray]
    ends_s: list[np.ndarray]
    tables: list[tuple[int, int, int]]
    holds: list[tuple[int, int, int, int, int]]
    fills: list[tuple[int, int, int, int, int, int]]  # growing last: 0 or 1
    idle: list[tuple[int, int, int, int]]


def block_tables(deployment: Deployment, records: Records) -> BlockTables | str:
    """The block tables of a run, or why they are not shown, in words."""
    refusal = _too_large(deployment, records)
    if refusal is not None:
        return refusal
    recorder = BlockRecorder()
    again, _ = serve(deployment, leap=False, recorder=recorder)
    for name in ("start_s", "duration_s", "kv_used_tokens", "kv_free_tokens"):
        assert np.array_equal(again.iterations[name], records.iterations[name]), "another run"
    engines = list(recorder.engines)
    histories = list(recorder.engines.values())
    replica = records.iterations["replica"]
    start_s = records.iterations["start_s"]
    end_s = start_s + records.iterations["duration_s"]
    tables = BlockTables(
        num_blocks=max(engine.allocator.num_blocks for engine in engines),
        block_size=engines[0].allocator.block_size,
        starts_s=[start_s[replica == number] for number in range(len(engines))],
        ends_s=[end_s[replica == number] for number in range(len(engines))],
        tables=[],
        holds=[],
        fills=[],
        idle=[],
    )
    for number, history in enumerate(histories):
        _Folding(tables, number).fold(history)
    return tables


def _too_large(deployment: Deployment, records: Records) -> str | None:
    requests, iterations = records.requests, records.iterations
    if records.tables is not None:
        return "A sequence has a table for each group of layers here; they are not drawn."
    if isinstance(deployment.latency, PipelineLatency):
        return "A pipeline keeps one cache for each batch in flight; its blocks are not drawn."
    asked = len(requests["request"])
    if asked > MAX_REQUESTS:
        return f"Drawn for runs of up to {MAX_REQUESTS} requests; this one has {asked:,}."
    ran = len(iterations["start_s"])
    if ran > MAX_ITERATIONS:
        return f"Drawn for runs of up to {MAX_ITERATIONS:,} iterations; this one has {ran:,}."
    sizes = {group.config.block_size for group in deployment.groups}
    if len(sizes) > 1:
        return "Replicas have blocks of different sizes; they are not drawn together."
    size = deployment.config.block_size
    tokens = requests["prompt_tokens"] + requests.get("sampled_tokens", requests["output_tokens"])
    needed = int((-(-tokens // size) + 1).sum())
    blocks = deployment.memory.num_gpu_blocks * deployment.num_replicas
    if min(needed, blocks) > MAX_BLOCKS:
        return (
            f"Drawn for up to {MAX_BLOCKS:,} KV blocks; the requests of this run may need "
            f"{needed:,} of {blocks:,}."
        )
    return None


class _Folding:
    """One engine's snapshots, folded into spans."""

    def __init__(self, tables: BlockTables, engine: int) -> None:
        self._found = tables
        self._engine = engine
        self._numbers: dict[tuple[int, int], int] = {}
        self._blocks: dict[int, tuple[int, ...]] = {}  # of each table in the iteration before
        self._since: dict[tuple[int, int], int] = {}  # (table, position) -> first iteration
        self._filling: dict[int, list[int]] = {}  # table -> first, used, reserved, growing or -1
        self._idle: dict[int, int] = {}

    def fold(self, history: EngineHistory) -> None:
        for at, (states, idle) in enumerate(
            zip(history.iterations, history.idle_blocks, strict=True)
        ):
            seen = set()
            for state in states:
                key = state.request, state.sample
                table = self._numbers.get(key)
                if table is None:
                    table = self._numbers[key] = len(self._found.tables)
                    self._found.tables.append((self._engine, *key))
                seen.add(table)
                self._hold(table, state.blocks, at)
                self._fill(table, at, state.used_tokens, state.reserved_tokens)
            for table in [table for table in self._blocks if table not in seen]:
                self._leave(table, at)
            self._keep_idle(set(idle), at)
        end = len(history.iterations)
        for table in list(self._blocks):
            self._leave(table, end)
        self._keep_idle(set(), end)

    def _hold(self, table: int, blocks: tuple[int, ...], at: int) -> None:
        before = self._blocks.get(table, ())
        if blocks == before:
            return
        for position in range(max(len(blocks), len(before))):
            old = before[position] if position < len(before) else None
            new = blocks[position] if position < len(blocks) else None
            if old == new:
                continue
            if old is not None:
                since = self._since.pop((table, position))
                self._found.holds.append((table, position, old, since, at))
            if new is not None:
                self._since[table, position] = at
        self._blocks[table] = blocks

    def _fill(self, table: int, at: int, used: int, reserved: int) -> None:
        now = self._filling.get(table)
        if now is not None:
            first, was_used, was_reserved, growing = now
            for growth in (0, 1) if growing < 0 else (growing,):
                passed = growth * (at - first)
                if (used, reserved) == (was_used + passed, max(was_reserved - passed, 0)):
                    now[3] = growth
                    return
            self._end_fill(table, at)
        self._filling[table] = [at, used, reserved, -1]

    def _end_fill(self, table: int, at: int) -> None:
        first, used, reserved, growing = self._filling.pop(table)
        self._found.fills.append((table, first, at, used, reserved, max(growing, 0)))

    def _leave(self, table: int, at: int) -> None:
        self._hold(table, (), at)
        self._end_fill(table, at)
        del self._blocks[table]

    def _keep_idle(self, idle: set[int], at: int) -> None:
        for block in sorted(self._idle.keys() - idle):
            self._found.idle.append((self._engine, block, self._idle.pop(block), at))
        for block in idle - self._idle.keys():
            self._idle[block] = at

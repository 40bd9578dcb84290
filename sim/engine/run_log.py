"""What an engine notes down while it serves, simulated or real, and the records it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from sim.batch import Batch
from sim.client_log import ClientLog, as_clients_saw
from sim.conservation import hold
from sim.engine.front_end import ApiServers
from sim.kv.groups import GroupedAllocator
from sim.kv.offload import TieredAllocator
from sim.records import Columns, IterationLog, Rare, Records
from sim.schedulers.scheduler import Scheduler
from sim.scratch import Scratch, StoredColumns, Table


class Serving(Protocol):
    """An engine as its records see it."""

    scheduler: Scheduler
    log: IterationLog
    servers: ApiServers | None


@runtime_checkable
class Verifying(Protocol):
    """A scheduler under speculative decoding, which notes down what is verified."""

    def iteration_columns(self) -> Columns:
        """Further columns of the iterations' records."""


@runtime_checkable
class Passing(Protocol):
    """An engine that requests come to, and may leave before they end."""

    came_s: list[float]
    gone_s: list[float]


@runtime_checkable
class Sharing(Protocol):
    """An engine whose device others compute on, too."""

    alone_s: Sequence[float]  # what each iteration takes with the device to itself


# What a batch, or a run of batches alike, consists of and what the cache holds meanwhile: a row of
# running requests, and those that have ended; prefilling sequences and their tokens; decoding
# sequences and their contexts; tokens, rows of logits, tokens emitted; KV blocks, stored tokens,
# those that each further iteration adds (and decodes emit), slots set aside. Then (iteration,
# blocks, times) that are added on the way, None for one iteration; and what `IterationLog.append`
# calls rare.
Row = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
Counts = tuple[Row, list[tuple[int, int, int]] | None, Rare | None]
EMITTED, _GROWTH = -5, -2  # where in a row they are


def counts_of(scheduler: Scheduler, batch: Batch, iterations: int) -> Counts:
    """What `batch` consists of, before the schedule moves on by so many iterations of it.

    A run's blocks are allocated here, all at once.
    """
    allocator, pool = scheduler.allocator, scheduler.pool
    emitted, stored, growth, reserved = scheduler.accounting(batch)
    if allocator.rules:
        stored = allocator.stored_slots(stored)
    verified = batch.verification
    decode_tokens = batch.num_decodes if verified is None else verified.query_tokens
    kv_blocks = allocator.num_blocks - allocator.num_free
    block_growth = scheduler.extend(iterations) if iterations > 1 else None
    rare = None
    swapped = batch.swap_in_blocks + batch.swap_out_blocks
    if swapped or batch.preempted or batch.extrapolated or allocator.shared_blocks or batch.copies:
        rare = (
            allocator.shared_blocks, swapped, batch.preempted, batch.extrapolated,
            len(batch.copies), len(batch.loaded), batch.tier_s,
        )  # fmt: skip
    row = (
        pool.num_running, pool.num_finished, len(batch.prefills),
        batch.num_tokens - decode_tokens, batch.num_decodes, batch.context_tokens,
        batch.num_tokens, batch.num_emitting, emitted, kv_blocks, stored, growth, reserved,
    )  # fmt: skip
    return row, block_growth, rare


def cut(counts: Counts, iterations: int, block_size: int) -> Counts:
    """The counts of the first so many iterations of a run."""
    row, added, rare = counts
    kept = [
        (ahead, blocks, min((iterations - 1 - ahead) // block_size + 1, times))
        for ahead, blocks, times in added or ()
        if ahead < iterations
    ]
    return row, kept, rare


def note(
    log: IterationLog,
    scheduler: Scheduler,
    batch: Batch,
    counts: Counts,
    start_s: float,
    ends_s: list[float],
    seen_s: float,
) -> None:
    """Write down a batch, or a run of them, that began at `start_s`; each ended as `ends_s` say.

    Clients saw the first one's tokens at `seen_s`.
    """
    row, added, rare = counts
    steady = row[_GROWTH]
    if steady:
        waited = batch.waited
        assert waited is not None, "tokens of decodes that do not decode"
        if len(waited) > 1 or next(iter(waited)).at_s != start_s or batch.waiting is not None:
            # Some waited longer than this iteration for their token, or, in a pipeline, the
            # iteration before was not theirs.
            scheduler.gaps += [(seen_s - last.seen_s, n) for last, n in waited.items() if n]
            steady = 0
    if batch.resumed:
        scheduler.gaps += [(seen_s - last.seen_s, 1) for last in batch.resumed.values()]
    log.append(start_s, ends_s, steady, row, added, rare)


class Checks:
    """The conservation laws and an engine's limits, verified as it runs.

    Limits at every iteration; all blocks are counted after as much work as that is itself, so that
    a run that is checked takes a few times as long, however large its cache is.
    """

    WORTH = 100  # blocks counted in about the time that an iteration takes to be decided

    def __init__(self) -> None:
        self._earned = 0

    def after(self, scheduler: Scheduler, batch: Batch) -> None:
        """Raise ConservationError where a law is broken."""
        running, config = scheduler.pool.running, scheduler.config
        free, blocks = scheduler.allocator.num_free, scheduler.allocator.num_blocks
        hold(0 <= free <= blocks, "free + used blocks != all blocks")
        hold(batch.num_seqs <= config.max_num_seqs, "more sequences than max_num_seqs")
        hold(len(running) <= config.max_num_seqs, "more sequences than max_num_seqs")
        if scheduler.has_token_budget:
            most = max(config.max_num_batched_tokens, batch.num_decodes)
            hold(batch.num_tokens <= most, "more tokens than max_num_batched_tokens")
        self._earned += self.WORTH
        if self._earned >= blocks:
            self._earned = 0
            self.blocks(scheduler)

    def blocks(self, scheduler: Scheduler) -> None:
        """Count every block."""
        scheduler.allocator.check(scheduler.pool.tables())


def keep_on(scratch: Scratch, engines: Sequence[Serving]) -> None:
    """What engines note down from now on is on disk, and so will be the records' columns."""
    for engine in engines:
        engine.log.keep_on(scratch)
        engine.scheduler.pool.log.keep_on(scratch)


def collect(
    engines: Sequence[Serving],
    replicas: Sequence[int] | None = None,
    *,
    scratch: Scratch | None = None,
) -> Records:
    """The records of engines that have nothing left to do.

    `replicas` says to which replica each belongs, where a replica has several (the virtual engines
    of a pipeline); by default each is one. `scratch` is what they keep their records on. Raises
    ConservationError when a request or a block was left behind.
    """
    requests, iterations, preemptions = list[Table](), list[Table](), list[Table]()
    gaps, weights = [], []
    rules = [engine.scheduler.pool.rules for engine in engines]
    tiered = any(_is_tiered(engine) for engine in engines)
    shared = any(isinstance(engine, Sharing) for engine in engines)
    endings = []  # the ways to end without an answer that this run has
    if any(each is not None and each.limits for each in rules):
        endings += ["refused", "gave_up"]
    if any(engine.scheduler.pool.log.stranded for engine in engines):
        endings.append("stranded")
    if any(engine.scheduler.pool.log.cancelled for engine in engines):
        endings.append("cancelled")
    for number, engine in zip(replicas or range(len(engines)), engines, strict=True):
        pool, allocator = engine.scheduler.pool, engine.scheduler.allocator
        hold(not pool.num_unfinished, "a request was left behind")
        hold(allocator.num_free == allocator.num_blocks, "a block was left behind")
        served = pool.log.requests()
        ran, gaps_s, gap_weights = engine.log.columns(
            num_blocks=allocator.num_blocks,
            block_size=allocator.block_size,
            tables=allocator.growing_tables,
            tiers=tiered,
            gaps=engine.scheduler.gaps,
            seen=None if engine.servers is None else engine.servers.seen_s,
        )
        if isinstance(engine, Passing):
            ran["waiting"] = _queue(np.array(engine.came_s), np.array(engine.gone_s), ran)
        else:
            ran["waiting"] = waiting_at(served, ran, pool.log.aborted_s)
        del ran["ended"]
        if isinstance(pool.log, ClientLog):
            as_clients_saw(served)
        if isinstance(engine.scheduler, Verifying):
            ran.update(engine.scheduler.iteration_columns())
        if shared:
            ran["alone_s"] = (
                np.array(engine.alone_s) if isinstance(engine, Sharing) else ran["duration_s"]
            )
        for name in endings:
            left = list(getattr(pool.log, name))
            served[name] = np.isin(served["request"], np.array(left, dtype="i8"))
        served["replica"] = np.full(len(served["request"]), number, dtype="i4")
        ran["replica"] = np.full(len(ran["start_s"]), number, dtype="i4")
        requests.append(served)
        iterations.append(ran)
        preemptions.append(pool.log.preemptions())
        gaps.append(gaps_s)
        weights.append(gap_weights)
    return Records(
        requests=_merge(requests, by="request", scratch=scratch),
        iterations=_merge(iterations, by="start_s", scratch=scratch),
        preemptions=dict(_merge(preemptions, by="preempted_s", scratch=None)),
        gaps_s=np.concatenate(gaps),
        gap_weights=np.concatenate(weights),
        tables=_tables(engines, replicas or range(len(engines))),
        tiers=_tiers(engines, replicas or range(len(engines))) if tiered else None,
    )


def _tables(engines: Sequence[Serving], replicas: Sequence[int]) -> Columns | None:
    """What the kinds of block tables held; None where there is one kind that keeps all."""
    rows = [
        (replica, rule, blocks)
        for replica, engine in zip(replicas, engines, strict=True)
        if isinstance(engine.scheduler.allocator, GroupedAllocator)
        for rule, blocks in enumerate(engine.scheduler.allocator.most_held)
    ]
    if not rows:
        return None
    columns = np.array(rows, dtype="i8").T
    return dict(zip(("replica", "rule", "most_blocks"), columns, strict=True))


def _is_tiered(engine: Serving) -> bool:
    return isinstance(engine.scheduler.allocator, TieredAllocator)


def _tiers(engines: Sequence[Serving], replicas: Sequence[int]) -> Columns:
    """What each tier of each replica was asked for and had."""
    tables = []
    for replica, engine in zip(replicas, engines, strict=True):
        allocator = engine.scheduler.allocator
        if isinstance(allocator, TieredAllocator):
            rows = allocator.tiers.rows()
            numbers = np.arange(len(rows))
            tables.append(np.column_stack((np.full(len(rows), replica), numbers, rows)))
    names = ("replica", "tier", "asked", "found", "passed_over", "stored", "held")
    return dict(zip(names, np.concatenate(tables).T, strict=True))


def waiting_at(requests: Table, iterations: Table, aborted_s: dict[int, float]) -> np.ndarray:
    """Requests that had arrived by an iteration's start and were not in it, nor gone."""
    arrivals = np.sort(requests["arrival_s"])
    rejected = requests["rejected"]
    gone_s = np.sort(
        [
            aborted_s.get(number, at_s)
            for number, at_s in zip(
                requests["request"][rejected].tolist(),
                requests["arrival_s"][rejected].tolist(),
                strict=True,
            )
        ]
    )
    return _queue(arrivals, gone_s, iterations)


def _queue(came_s: np.ndarray, gone_s: np.ndarray, iterations: Table) -> np.ndarray:
    """Requests at an iteration's start that had come, were not running, nor finished, nor gone."""
    start_s = iterations["start_s"]
    inside = iterations["running"] + iterations["ended"]
    waiting: np.ndarray = np.searchsorted(np.sort(came_s), start_s, side="right") - inside
    waiting -= np.searchsorted(np.sort(gone_s), start_s, side="right")
    return waiting.astype("i4")


def _merge(tables: list[Table], *, by: str, scratch: Scratch | None) -> Table:
    if len(tables) == 1:
        return tables[0]
    merged: Table = {} if scratch is None else StoredColumns(scratch)
    order = np.argsort(np.concatenate([table[by] for table in tables]), kind="stable")
    for name in tables[0]:
        merged[name] = np.concatenate([table[name] for table in tables])[order]
    return merged

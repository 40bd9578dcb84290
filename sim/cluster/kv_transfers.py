"""KV caches on their way from prefill to decode replicas, and who holds them until they are there.

A prompt's blocks stay in use at the prefill replica until a decode replica has admitted the
request, as where the decode side pulls a cache once it has room (DistServe, Zhong et al., OSDI
2024, section 4.3): a decode pool that is full, or a slow link, holds the prefill pool up. A cache
that has not arrived is lost with the replica that sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from sim.batch import Batch
from sim.cluster.plan import ClusterFacts, KvLink
from sim.cluster.replica import ARRIVAL, ClusterReplica, ReplicaPool
from sim.engine.clock import Clock
from sim.request import Request


class PrefillPool(ReplicaPool):
    """Requests leave it as their prompts are computed, and leave their blocks behind.

    Their token is nobody's: as behind vLLM's proxies, which ask a prefill engine for one token and
    drop it, clients hear the decode engine alone.
    """

    hands_over = True

    def __init__(self, block_size: int, *, track_longest: bool = False) -> None:
        super().__init__(block_size, track_longest=track_longest)
        self._held: dict[Request, list[int]] = {}
        self.held_tokens = 0

    def emit_first(self, request: Request, batch: Batch) -> None:
        request.num_generated_tokens += 1

    def answer(self, request: Request, now_s: float) -> None:
        request.finished_s = now_s
        self.num_finished += 1

    def detach(self, request: Request) -> list[int]:
        self._held[request] = request.block_table
        self.held_tokens += request.prompt_tokens
        request.block_table = []
        return request.block_table

    def let_go(self, request: Request) -> list[int]:
        """The table that was held for `request`, which is not held any more."""
        self.held_tokens -= request.prompt_tokens
        return self._held.pop(request)

    def held_tables(self) -> Iterator[tuple[Request, list[int]]]:
        return iter(self._held.items())

    def held(self) -> list[Request]:
        """Requests whose blocks are held."""
        return list(self._held)

    def tables(self) -> Iterator[list[int]]:
        yield from super().tables()
        yield from self._held.values()


class DecodePool(ReplicaPool):
    """Tells when a request that was computed elsewhere is admitted."""

    def __init__(
        self,
        block_size: int,
        admitted: Callable[[Request, float], None],
        *,
        track_longest: bool = False,
    ) -> None:
        super().__init__(block_size, track_longest=track_longest)
        self._admitted = admitted

    def start(self, request: Request, now_s: float) -> None:
        super().start(request, now_s)
        self._admitted(request.whole, now_s)


class KvTransfers:
    """All transfers of a cluster; those out of one replica share its link, one after the other."""

    def __init__(
        self,
        link: KvLink | None,
        clock: Clock,
        facts: ClusterFacts,
        arrived: Callable[[Request, float], None],
    ) -> None:
        self._link = link
        self._clock = clock
        self._facts = facts
        self._arrived = arrived
        self._free_s: dict[int, float] = {}  # when each replica's link has sent all it has
        self._holders: dict[Request, ClusterReplica] = {}
        self._under_way: dict[Request, int] = {}  # -> the number of its transfer
        self._sent = 0

    def send(
        self, replica: ClusterReplica, request: Request, size_bytes: float, now_s: float
    ) -> None:
        """Send the cache of a request whose prompt `replica` has just computed.

        Whoever goes on computes the prompt's last token again, for its logits.
        """
        link = self._link
        assert link is not None
        begins_s = max(now_s, self._free_s.get(replica.number, 0.0))
        arrives_s = begins_s + link.latency_s + size_bytes / link.bytes_per_s
        self._free_s[replica.number] = arrives_s
        request.num_computed_tokens, request.num_generated_tokens = request.prompt_tokens - 1, 0
        self._facts.prefilled_s[request.index] = now_s
        request.finished_s = float("nan")
        self._sent += 1
        self._holders[request] = replica
        self._under_way[request] = self._sent
        self._clock.at(
            arrives_s,
            ARRIVAL,
            partial(self._arrive, request, self._sent, size_bytes, arrives_s - now_s),
        )

    def _arrive(
        self, request: Request, number: int, size_bytes: float, took_s: float, now_s: float
    ) -> None:
        if self._under_way.get(request) != number:
            return  # lost with its sender
        del self._under_way[request]
        facts = self._facts
        facts.transfers += 1
        facts.transferred_bytes += size_bytes
        facts.transfer_s += took_s
        self._arrived(request, now_s)

    def release(self, request: Request, now_s: float) -> None:
        """Nobody needs the blocks any more that a prefill replica holds for `request`, if any."""
        replica = self._holders.pop(request, None)
        if replica is not None:
            free_held(replica, request)
            replica.wake(now_s)

    def lose(self, replica: ClusterReplica, now_s: float) -> list[Request]:
        """`replica` failed: its held blocks are void; returns those whose caches are lost with it.

        What has arrived at a decode replica is safe.
        """
        if not isinstance(replica.pool, PrefillPool):
            return []
        self._free_s[replica.number] = now_s
        lost = []
        for request in replica.pool.held():
            self._holders.pop(request, None)
            free_held(replica, request)
            if self._under_way.pop(request, None) is not None:
                request.num_computed_tokens = request.num_generated_tokens = 0
                lost.append(request)
        return lost


def free_held(replica: ClusterReplica, request: Request) -> None:
    """Give back the blocks that a prefill replica holds for `request`."""
    pool = replica.pool
    assert isinstance(pool, PrefillPool)
    replica.allocator.free(pool.let_go(request))
    replica.note_change()

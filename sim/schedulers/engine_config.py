"""The knobs of one serving engine, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.kv.contiguous import PLACEMENTS
from sim.kv.tables import TableRule
from sim.kv.tiers import Refetch, TierSpec

if TYPE_CHECKING:
    from sim.queues import QueueRules
    from sim.speculation import Speculation


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and rules that a scheduler obeys. Times in seconds, lengths in tokens."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16
    max_model_len: int = 1 << 31
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0  # 0: a prompt may fill the whole budget
    preemption: str = "recompute"  # or "swap" (scheduler `paged`)
    swap_blocks: int = 0  # blocks of host memory that preempted sequences may be swapped to
    kv_tiers: tuple[TierSpec, ...] = ()  # of memory behind the prefix cache
    kv_tier_writes: str = "back"  # or "through": what is computed goes to every tier at once
    refetch: Refetch | None = None  # whether to fetch from tiers is weighed; None: always fetch
    watermark: float = 0.01  # share of blocks `paged` keeps free when it admits
    reservation: str = "max_tokens"  # what `orca`, `static` and `dynamic` reserve per request
    placement: str = "anywhere"  # or in one piece: where `orca` puts what it reserves
    pads_attention: bool = True  # whether `static` and `dynamic` attend to padding, as they compute
    preferred_batch_sizes: tuple[int, ...] = ()  # scheduler `dynamic`
    max_queue_delay_s: float = 0.0  # scheduler `dynamic`
    scheduler_reserve_full_isl: bool = True  # scheduler `chunked`: a prompt fits whole, or waits
    speculation: Speculation | None = None
    async_scheduling: bool = False  # decide an iteration ahead, while the device computes
    pipeline_stages: int = 1  # one batch in flight for each; decodes wait for their tokens
    # Of the block tables of a sequence, where they are not one that keeps every token.
    table_rules: tuple[TableRule, ...] = ()
    queue: QueueRules | None = None  # None: first come first served, without end

    def __post_init__(self) -> None:
        if self.preemption not in ("recompute", "swap"):
            raise ValueError(f"preemption {self.preemption!r}; allowed: recompute, swap")
        if self.reservation not in RESERVATIONS:
            raise ValueError(
                f"reservation {self.reservation!r}; allowed: {', '.join(RESERVATIONS)}"
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement {self.placement!r}; allowed: {', '.join(PLACEMENTS)}")
        if self.kv_tiers and not self.enable_prefix_caching:
            raise ValueError("kv_tiers need enable_prefix_caching: nothing is found again")
        if self.kv_tiers and self.table_rules:
            raise ValueError("kv_tiers need layers that all keep every token")
        if max(self.preferred_batch_sizes, default=0) > self.max_num_seqs:
            raise ValueError(
                f"preferred_batch_sizes {self.preferred_batch_sizes}: none may be above "
                f"max_num_seqs {self.max_num_seqs}"
            )

    @property
    def batches_in_flight(self) -> int:
        """How many batches an engine launches before it waits for the first one's tokens."""
        if self.pipeline_stages > 1:
            return self.pipeline_stages
        return 2 if self.async_scheduling else 1

    def reserved_tokens(self, prompt_tokens: int, max_tokens: int, output_tokens: int) -> int:
        """KV slots that a reserving policy sets aside for one request.

        The variants are those that the PagedAttention paper (section 6.1) compares with:
        ``max_model_len`` (its Orca (Max)), ``pow2`` (output rounded up to a power of two),
        ``oracle`` (the true length), and Orca's own rule, the client's ``max_tokens``. No sequence
        grows beyond ``max_model_len``, so none needs more.
        """
        if self.reservation == "max_model_len":
            return self.max_model_len
        if self.reservation == "pow2":
            wanted = prompt_tokens + (1 << (output_tokens - 1).bit_length())
        elif self.reservation == "oracle":
            wanted = prompt_tokens + output_tokens - 1
        else:
            wanted = prompt_tokens + max_tokens
        return min(wanted, self.max_model_len)


RESERVATIONS = ("max_tokens", "max_model_len", "pow2", "oracle")

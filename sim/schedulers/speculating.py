"""Any iteration-level policy, with speculating sequences.

The policy stays what it is: who is admitted, who is preempted, in which order. What changes is what
a decoding sequence asks for: as many tokens of the budget as it verifies, blocks for all of them
and for the next proposals, and that it comes back with more than one token.
"""

from __future__ import annotations

from array import array
from functools import cache

import numpy as np

from sim.batch import Batch, Verification
from sim.kv.cache import BlockAllocator
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.engine_config import EngineConfig
from sim.schedulers.iteration import IterationScheduler
from sim.schedulers.observed_decode_set import ObservedDecodeSet
from sim.schedulers.paged import PagedScheduler
from sim.schedulers.speculative_decode_set import SpeculativeDecodeSet
from sim.speculation.acceptance import ObservedAcceptance


@cache
def speculating(policy: type) -> type:
    """`policy` with speculative decoding. Raises ValueError where it batches by request."""
    if not issubclass(policy, IterationScheduler):
        raise ValueError(
            "speculation needs a scheduler that batches by iteration (orca, paged, chunked): "
            "request-level batching keeps all rows of a batch equally long, and accepted tokens "
            "make them advance unevenly"
        )
    return type(f"Speculative{policy.__name__}", (SpeculativeScheduler, policy), {})


class SpeculativeScheduler(IterationScheduler):
    """What speculation adds to a policy; mixed in by `speculating`."""

    pool: RequestPool

    def __init__(self, pool: RequestPool, allocator: BlockAllocator, config: EngineConfig) -> None:
        super().__init__(pool, allocator, config)
        assert config.speculation is not None
        self._slots = config.speculation.shape.slots
        pool.decodes = self._decode_set(pool.decodes.tracks_longest)
        if isinstance(self, PagedScheduler):
            self.has_token_budget = False  # V0 limits prompts; a verification may be larger
        self._verifications = VerificationLog()

    def _decode_set(self, track_longest: bool) -> SpeculativeDecodeSet | ObservedDecodeSet:
        """Of drawn acceptances, or, where a model verifies for real, of observed ones."""
        config, speculation = self.config, self.config.speculation
        assert speculation is not None
        acceptance = speculation.acceptance
        if isinstance(acceptance, ObservedAcceptance):
            return ObservedDecodeSet(
                acceptance,
                speculation.shape,
                config.block_size,
                track_longest=track_longest,
                max_model_len=config.max_model_len,
                reserves=self.reserves,
            )
        return SpeculativeDecodeSet(
            speculation,
            config.block_size,
            track_longest=track_longest,
            max_model_len=config.max_model_len,
            reserves=self.reserves,
        )

    def _final_slots(self, request: Request) -> int:
        if request.output_tokens == 1:
            return request.final_tokens
        slots = request.final_tokens - 1 + self._slots
        return max(min(slots, self.config.max_model_len), request.final_tokens)

    def _decode_slots(self, request: Request) -> int:
        slots = request.num_computed_tokens + self._slots
        return max(min(slots, self.config.max_model_len), request.num_computed_tokens + 1)

    def _add_decodes(self, batch: Batch) -> Batch:
        super()._add_decodes(batch)
        decodes = self.pool.decodes
        assert isinstance(decodes, SpeculativeDecodeSet | ObservedDecodeSet)
        batch.verification = verification = decodes.verification()
        # Every verified token passes all layers, and has its logits compared.
        drafts = verification.query_tokens - batch.num_decodes
        batch.num_tokens += drafts
        batch.num_emitting += drafts
        return batch

    def collect(self, batch: Batch, now_s: float) -> list[Request]:
        self._verifications.append(batch.verification)
        return super().collect(batch, now_s)

    def accounting(self, batch: Batch) -> tuple[int, int, int, int]:
        rows, stored, count, reserved = super().accounting(batch)
        if count:
            assert batch.verification is not None
            # What is rejected is neither handed out nor kept.
            drafts = batch.verification.query_tokens - count
            rows += batch.verification.emitted - count - drafts
            stored -= drafts
        return rows, stored, count, reserved

    def iteration_columns(self) -> dict[str, np.ndarray]:
        """Columns for the iterations' records; see `VerificationLog.columns`."""
        return self._verifications.columns()


class VerificationLog:
    """What every iteration verified."""

    def __init__(self) -> None:
        self._counts = array("q")
        self._draft_s = array("d")

    def append(self, verification: Verification | None) -> None:
        """One iteration's; None where nobody decoded and no draft ran."""
        if verification is None:
            self._counts.extend((0, 0, 0, 0))
            self._draft_s.append(0.0)
            return
        self._counts.extend(
            (
                verification.query_tokens, verification.drafted,
                verification.accepted, verification.emitted,
            )
        )  # fmt: skip
        self._draft_s.append(verification.draft_s)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of an iteration each: verified_tokens (the target's query tokens of decoding
        sequences), drafted_tokens, accepted_tokens, decoded_tokens (emitted by decoding sequences)
        and draft_s, the time that drafting took."""
        counts = np.frombuffer(self._counts, dtype="i8").reshape(-1, 4).T.astype("i4")
        names = ("verified_tokens", "drafted_tokens", "accepted_tokens", "decoded_tokens")
        columns = dict(zip(names, counts, strict=True))
        return columns | {"draft_s": np.frombuffer(self._draft_s, dtype="f8")}

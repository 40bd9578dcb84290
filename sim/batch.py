"""What one iteration computes: the features that a latency model turns into seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.request import Emission, Request

if TYPE_CHECKING:
    from sim.decode_set import DecodeSet


@dataclass(slots=True)
class PrefillChunk:
    """Some tokens of one request's prompt (or of a preempted sequence that is recomputed)."""

    request: Request
    new_tokens: int
    cached_tokens: int  # already in the cache: attended to, not computed


@dataclass(slots=True)
class Verification:
    """What speculating sequences verify in one iteration; sums over all of them."""

    query_tokens: int = 0  # computed by the target: each sequence's last token and its drafts
    drafted: int = 0
    accepted: int = 0  # also beyond an answer's end
    emitted: int = 0  # handed out: accepted ones and the target's own, up to an answer's end
    draft_s: float = 0.0  # time spent on drafting; set by the latency model
    per_sequence: dict[Request, int] | None = None  # query tokens of each; of a real engine


@dataclass(slots=True)
class Batch:
    """The work of one iteration, or of `iterations` identical decode iterations in a row.

    Orca's selective batching is in these features: everything but attention sees ``num_tokens``
    tokens at once, attention sees one sequence after the other.
    """

    prefills: list[PrefillChunk] = field(default_factory=list)
    num_decodes: int = 0  # sequences that compute one token (padding rows included)
    context_tokens: int = 0  # sum over those of the tokens attended to, the new one included
    longest_tokens: int = 0  # the longest of those contexts
    num_tokens: int = 0  # through the linear layers, padding included
    num_emitting: int = 0  # rows of logits
    num_seqs: int = 0
    swap_in_blocks: int = 0
    swap_out_blocks: int = 0
    swapped_out: Sequence[tuple[Request, list[int]]] = ()  # whose blocks go to the host first
    swapped_in: Sequence[Request] = ()  # whose blocks come back into their new tables then
    # Of ranks in lockstep: tokens of the fullest, and of all, which share the experts (zero: it
    # steps alone); and what the latency model finds this one padded to.
    fullest_tokens: int = 0
    all_tokens: int = 0
    padded_tokens: int = 0
    # The prefix cache's tiers. As with swapping, all that goes out goes before all that comes in.
    offloaded: Sequence[tuple[int, int]] = ()  # (device block, or ~block of a tier, tier's block)
    loaded: Sequence[tuple[int, int]] = ()  # (tier's block, device block)
    tier_s: float = 0.0  # reading from tiers, before the host link
    copies: Sequence[tuple[int, int]] = ()  # (source, target) device blocks, after all of these
    preempted: int = 0
    decided_ahead: bool = False  # while the batch before was computed: the host's time is hidden
    extrapolated: bool = False  # set by a latency model that left its measured range
    emission: Emission = field(default_factory=Emission)  # of its tokens
    # The latest tokens of those who decode, and how many have each; and of those whose prefill ends
    # here though they have had tokens before.
    waited: Mapping[Emission, int] | None = None
    resumed: Mapping[Request, Emission] | None = None
    ended: Sequence[Request] = ()  # who have their last token from it
    waiting: DecodeSet | None = None  # who wait for a token of it before they decode again
    verification: Verification | None = None  # under speculative decoding

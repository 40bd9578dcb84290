"""Time of attention that looks back on a bounded number of tokens: windows, chunks, the best few.

A batch of decodes is known by its number and the sum of its contexts, so each is taken to be as
long as their mean. Where some are shorter than the window and others longer that is too slow, never
too fast (the bound is concave): at most by the tokens that the short ones lack.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.model.kv_group import KvGroup
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class BoundedAttention:
    """Layers that look back on at most ``limit`` tokens, all together, on one GPU.

    ``chunked``: on those of the same chunk of so many, half of it on average. Seconds per (query,
    key) pair of a prefill, per key read, per query and output moved, per (decode, key) read and
    scored, and of the latter the scoring alone.
    """

    limit: int
    chunked: bool
    per_pair_s: float
    per_key_s: float
    per_query_s: float
    per_context_s: float
    per_scored_s: float

    @classmethod
    def of(
        cls, group: KvGroup, *, query_bytes: int, flops_per_s: float, bytes_per_s: float
    ) -> BoundedAttention:
        """Of a group with a limit, at these rates."""
        assert group.limit is not None
        read_s = group.read_bytes_per_token / bytes_per_s
        scored_s = group.context_flops / flops_per_s
        return cls(
            limit=group.limit,
            chunked=group.kind == "chunked",
            per_pair_s=group.pair_flops / flops_per_s,
            per_key_s=read_s,
            per_query_s=query_bytes / bytes_per_s,
            per_context_s=max(read_s, scored_s),
            per_scored_s=scored_s,
        )

    def shared(self, ranks: int, *, split: int) -> BoundedAttention:
        """A rank's part: of contexts, which lie on `ranks` of them, and of a prompt, on `split`."""
        return replace(
            self,
            per_pair_s=self.per_pair_s / split,
            per_key_s=self.per_key_s / split,
            per_query_s=self.per_query_s / split,
            per_context_s=self.per_context_s / ranks,
            per_scored_s=self.per_scored_s / ranks,
        )

    def prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Attention of one prompt's chunk."""
        keys = min(cached_tokens, self.limit) + new_tokens
        compute_s = self.pairs(new_tokens, cached_tokens) * self.per_pair_s
        memory_s = keys * self.per_key_s + new_tokens * self.per_query_s
        return max(compute_s, memory_s)

    def pairs(self, new_tokens: int, cached_tokens: int) -> float:
        """(Query, key) pairs of a chunk."""
        if self.chunked:
            return self._pairs_from_start(cached_tokens + new_tokens) - self._pairs_from_start(
                cached_tokens
            )
        growing = min(max(self.limit - cached_tokens, 0), new_tokens)
        whole = (new_tokens - growing) * self.limit
        return whole + growing * (cached_tokens + 0.5 * (growing + 1))

    def _pairs_from_start(self, tokens: int) -> float:
        chunks, rest = divmod(tokens, self.limit)
        return 0.5 * (chunks * self.limit * (self.limit + 1) + rest * (rest + 1))

    def attended(self, decodes: int, context_tokens: int) -> float:
        """Tokens that so many decodes attend to, of this context in all."""
        if context_tokens <= decodes * self.limit:
            return context_tokens
        return decodes * (0.5 * self.limit if self.chunked else self.limit)

    def decode_s(self, decodes: int, context_tokens: int) -> float:
        """Attention of decodes, their queries apart."""
        return self.attended(decodes, context_tokens) * self.per_context_s

    def further_s(self, decodes: int, context_tokens: int, queries: int) -> float:
        """What `queries` in all take beyond one for each decode."""
        scored_s = queries / decodes * self.per_scored_s
        beyond_s = max(scored_s - self.per_context_s, 0.0)
        return self.attended(decodes, context_tokens) * beyond_s


@dataclass(frozen=True, slots=True)
class BesideAttention:
    """What a model's layers do beside attention to every token: bounded attention, and states.

    A state is read and written for a decode (``per_state_s``, in what a decode costs), and once for
    a chunk of a prompt, whose tokens each update it (``per_state_token_s``).
    """

    bounded: tuple[BoundedAttention, ...]
    per_state_s: float
    per_state_token_s: float

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        groups: list[KvGroup],
        *,
        tensor_parallel: int,
        bytes_each: int,
        flops_per_s: float,
        bytes_per_s: float,
    ) -> BesideAttention | None:
        """None for a model whose layers all look at every token."""
        state_bytes = model.state_bytes(tensor_parallel)
        bounded = tuple(
            BoundedAttention.of(
                group,
                query_bytes=group.query_numbers * bytes_each,
                flops_per_s=flops_per_s,
                bytes_per_s=bytes_per_s,
            )
            for group in groups
            if group.limit is not None
        )
        if not bounded and not state_bytes:
            return None
        update_s = model.state_flops(tensor_parallel) / flops_per_s
        return cls(bounded, 2 * state_bytes / bytes_per_s, update_s)

    def shared(self, ranks: int, *, split: int) -> BesideAttention:
        """A rank's part (see `BoundedAttention.shared`)."""
        return replace(
            self, bounded=tuple(each.shared(ranks, split=split) for each in self.bounded)
        )

    def prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Of one prompt's chunk."""
        bounded_s = sum(each.prefill_s(new_tokens, cached_tokens) for each in self.bounded)
        return bounded_s + max(new_tokens * self.per_state_token_s, self.per_state_s)

    def decode_s(self, decodes: int, context_tokens: int) -> float:
        """Of decodes: what depends on their contexts."""
        return sum(each.decode_s(decodes, context_tokens) for each in self.bounded)

    def further_s(self, decodes: int, context_tokens: int, queries: int) -> float:
        """What `queries` in all take beyond one for each decode."""
        return sum(each.further_s(decodes, context_tokens, queries) for each in self.bounded)

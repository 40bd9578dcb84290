"""Layers that treat a token's keys and values alike: what they keep of it, and what looking costs.

Engines with a hybrid cache manager (vLLM) keep such layers' blocks apart: a full group grows with
the sequence, a sliding one frees blocks behind its window, a chunked one those of chunks gone by,
a state is as large for a thousand tokens as for one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvGroup:
    """``num_layers`` layers of one kind on one GPU, their figures added up.

    ``bytes_per_token`` is what a token leaves in the cache, ``read_bytes_per_token`` what a query
    reads of it, ``index_bytes_per_token`` of that an indexer's. FLOPs are per (query, key): in
    prefills, in decodes, and an indexer's; ``query_numbers`` are read and written for a query
    beside its keys. ``limit`` is how many tokens back are kept or attended.
    """

    label: str
    kind: str
    num_layers: int
    window: int | None
    selected: int | None
    bytes_per_token: int
    read_bytes_per_token: int
    index_bytes_per_token: int
    pair_flops: int
    context_flops: int
    index_flops: int
    query_numbers: int

    @property
    def limit(self) -> int | None:
        """Most tokens that one query attends to; None: all."""
        return self.window if self.selected is None else self.selected

    def kept_tokens(self, tokens: int) -> int:
        """Of a sequence's tokens, how many it needs to keep once it has computed them."""
        return tokens if self.window is None else min(tokens, self.window)

    def bytes_at(self, tokens: int) -> int:
        """Bytes of a sequence of so many tokens."""
        return self.bytes_per_token * self.kept_tokens(tokens)

    def most_blocks(self, tokens: int, *, chunk_tokens: int, block_size: int) -> int:
        """Blocks a sequence holds at most while it grows to `tokens`, as vLLM counts them.

        A window needs what it looks back on and the `chunk_tokens` of an iteration, which may
        begin inside a block (``SlidingWindowSpec.max_memory_usage_bytes``); a chunk of Llama 4
        begins at a block.
        """
        if self.window is None:
            return -(-tokens // block_size)
        if self.kind == "chunked":
            return -(-min(self.window + chunk_tokens, tokens) // block_size)
        return -(-min(self.window - 1 + chunk_tokens, tokens) // block_size) + 1

"""A small model that drafts, with keys and values of its own in the same blocks as the target's.

It proposes at the beginning of an iteration, when the slots of all that is verified have been
allocated: one pass per level of the tree, the first of which also computes the batch's prompts and
whatever a sequence has that the draft has not seen (its last token, and the last of its drafts
where all were accepted). Greedy: a node's children are its likeliest tokens. Sampled: they are
drawn independently, and the distribution goes along for the verification.

A sequence that ends with its last draft accepted leaves that one slot of a block unwritten; whoever
finds the block in the prefix cache has worse drafts for it, and the target's answers all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from calibrate.engine.host_blocks import HostBlocks
from calibrate.engine.speculation.packed import Packing, to_device
from calibrate.engine.speculation.proposer import Proposal, Verified
from calibrate.engine.speculation.token_tree import TokenTree
from kernels.transformer import Transformer
from sim.batch import Batch
from sim.request import Request

Probabilities = Callable[[torch.Tensor], torch.Tensor]


class DraftModelProposer:
    """Chains or trees of a draft model.

    Args:
        model: the draft; its vocabulary is the target's.
        num_blocks, block_size: of the target's cache, whose block numbers it uses.
        tokens_of: all tokens of a sequence.
        probabilities: logits -> the distribution to draw from; None: the likeliest.
        generator: of its draws.
        swap_blocks: host blocks of sequences that are swapped out.

    Raises: MemoryError where its cache does not fit.
    """

    def __init__(
        self,
        model: Transformer,
        tree: TokenTree,
        *,
        num_blocks: int,
        block_size: int,
        tokens_of: Callable[[Request], Sequence[int]],
        probabilities: Probabilities | None = None,
        generator: torch.Generator | None = None,
        swap_blocks: int = 0,
    ) -> None:
        self._model = model
        self._tree = tree
        self._tokens_of = tokens_of
        self._probabilities = probabilities
        self._generator = generator
        try:
            self.kv_cache = model.new_kv_cache(num_blocks, block_size)
            self.host = HostBlocks(self.kv_cache, swap_blocks, backend=model.backend)
        except (RuntimeError, MemoryError) as error:
            needed = num_blocks * block_size * model.kv_bytes_per_token / 2**30
            raise MemoryError(
                f"the draft's KV cache of {num_blocks} blocks needs {needed:.2f} GiB: "
                f"{str(error).splitlines()[0]}"
            ) from None
        self._computed: dict[Request, int] = {}  # tokens of each in its cache
        self._depths = np.array(tree.depths)
        self._words = np.array(tree.words, dtype=np.uint64).view(np.int64)

    def propose(self, batch: Batch, members: Sequence[Request], packing: Packing) -> Proposal:
        tree, rows = self._tree, len(members)
        device = self._model.embeddings.device
        logits = self._catch_up(members, packing)
        for chunk in batch.prefills:
            self._computed[chunk.request] = chunk.cached_tokens + chunk.new_tokens
        tokens = torch.zeros((rows, len(tree)), dtype=torch.int64, device=device)
        if not rows:
            return Proposal(tokens)
        inner = tree.levels[-1][0]  # nodes that have children
        q: torch.Tensor | None = None
        for level, count in enumerate(tree.branching):
            first, end = tree.levels[level]
            if level:
                logits = self._level(tokens[:, first:end], first, packing)
            children, drawn_from = self._children(logits, count)
            tokens[:, slice(*tree.levels[level + 1])] = children.view(rows, -1)
            if drawn_from is not None:
                if q is None:
                    vocabulary = drawn_from.shape[-1]
                    q = torch.zeros(
                        (rows, inner, vocabulary), dtype=drawn_from.dtype, device=device
                    )
                q[:, first:end] = drawn_from.view(rows, end - first, -1)
        return Proposal(tokens, q)

    def verified(self, request: Request, found: Verified) -> None:
        # Leaves are proposed and never computed; a chain's others lie where they belong.
        kept = min(len(found.path), len(self._tree.branching))
        stored = self._computed.get(request, 0)
        self._computed[request] = stored - 1 + kept

    def emitted(self, request: Request, tokens: Sequence[int]) -> bool:
        return True

    def drop(self, request: Request) -> None:
        self._computed.pop(request, None)

    def _catch_up(self, members: Sequence[Request], packing: Packing) -> torch.Tensor:
        """Prompts, and what sequences have beyond the draft's cache: logits after their last."""
        stored = packing.stored
        known = np.array([self._computed.get(one, 0) for one in members], dtype=np.int64)
        starts = np.minimum(known, stored)
        counts = stored + 1 - starts
        width = int(counts.max(initial=1))
        rows = np.zeros((len(members), width), dtype=np.int64)
        for row, request, start, end in zip(
            rows, members, starts.tolist(), (stored + 1).tolist(), strict=True
        ):
            row[: end - start] = self._tokens_of(request)[start:end]
            self._computed[request] = end
        batch = packing.batch(
            to_device(rows, self._model.embeddings.device),
            starts=starts,
            counts=counts,
            with_prompts=True,
        )
        hidden = self._model.forward(batch, self.kv_cache)[width - 1 : len(members) * width : width]
        return self._model.logits(hidden.contiguous()) if len(members) else hidden

    def _level(self, tokens: torch.Tensor, first: int, packing: Packing) -> torch.Tensor:
        """Logits after every node of a level: [D · nodes, vocabulary]."""
        nodes, tree = tokens.shape[1], self._tree
        starts = packing.stored + first
        fits = starts + nodes <= packing.room
        words = depths = None
        if not tree.is_chain:
            words = self._words[first : first + nodes]
            depths = self._depths[first : first + nodes] - first
        batch = packing.batch(
            tokens,
            starts=starts,
            counts=np.where(fits, nodes, 0),
            depths=depths,
            words=words,
            tree_len=None if tree.is_chain else first + nodes,
        )
        return self._model.logits(self._model.forward(batch, self.kv_cache))

    def _children(
        self, logits: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Candidates after each row, [rows, count], and what they were drawn from."""
        if self._probabilities is None:
            return logits.topk(count, dim=-1).indices, None
        q = self._probabilities(logits)
        drawn = torch.multinomial(q, count, replacement=True, generator=self._generator)
        return drawn, q

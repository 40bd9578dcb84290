"""Jacobi decoding (Santilli et al. 2023): the answer as a fixed point of the target itself.

    y⁰ anything;   yᵢ ← argmax P(y | x, yᵢ₋₁), all m positions at once;   until yᵢ = yᵢ₋₁

After i passes the first i tokens are those of greedy decoding, so m passes are the most it takes.
`JacobiProposer` does it over a window that moves along inside an engine, `jacobi_decode` as it is
written, for one prompt and a fixed length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calibrate.engine.speculation.packed import Packing
from calibrate.engine.speculation.proposer import Proposal, Verified
from kernels.transformer import ForwardBatch, Transformer
from sim.batch import Batch
from sim.request import Request


class JacobiProposer:
    """The target's own guesses of the pass before, `depth` of them; at first the last token."""

    def __init__(self, depth: int, device: torch.device) -> None:
        self._depth = depth
        self._device = device
        self._guesses: dict[Request, list[int]] = {}

    def propose(self, batch: Batch, members: Sequence[Request], packing: Packing) -> Proposal:
        rows = [[0, *self._guesses[one]] for one in members]
        tokens = torch.tensor(rows, dtype=torch.int64, device=self._device)
        return Proposal(tokens.view(len(members), self._depth + 1))

    def verified(self, request: Request, found: Verified) -> None:
        # What it said after guesses that were not accepted, too: those are the next guesses.
        self._guesses[request] = list(found.predictions[len(found.path) :])

    def emitted(self, request: Request, tokens: Sequence[int]) -> bool:
        guesses = self._guesses.get(request, [])[: self._depth]
        last = guesses[-1] if guesses else tokens[-1]
        self._guesses[request] = guesses + [last] * (self._depth - len(guesses))
        return True

    def drop(self, request: Request) -> None:
        self._guesses.pop(request, None)


@dataclass(frozen=True, slots=True)
class JacobiDecoded:
    """tokens: the answer. passes: of the target, the one that found nothing new included."""

    tokens: list[int]
    passes: int


def jacobi_decode(
    model: Transformer, prompt: Sequence[int], length: int, *, block_size: int = 16
) -> JacobiDecoded:
    """The greedy answer of `length` tokens, by Jacobi iteration.

    The prompt but its last token is computed once; every pass then computes that token and the
    first length − 1 guesses over it, in parallel. Starts from the prompt's last token, repeated.
    Raises ValueError for an empty prompt or answer.
    """
    if not prompt or length < 1:
        raise ValueError(
            f"a prompt and an answer are needed, got {len(prompt)} and {length} tokens"
        )
    device = model.embeddings.device
    before = len(prompt) - 1
    blocks = -(-(before + length) // block_size)
    cache = model.new_kv_cache(blocks, block_size)
    tables = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    places = torch.arange(before + length, device=device)

    def passed(tokens: torch.Tensor, first: int, *, prompts: bool) -> torch.Tensor:
        end = first + len(tokens)
        batch = ForwardBatch(
            token_ids=tokens,
            positions=places[first:end],
            slot_mapping=places[first:end],
            block_tables=tables,
            context_lens=torch.tensor([end], device=device),
            num_decodes=0 if prompts else 1,
            query_len=1 if prompts else len(tokens),
            cu_seqlens=torch.tensor([0, len(tokens)], device=device) if prompts else None,
            has_past=not prompts,
        )
        return model.forward(batch, cache)

    given = torch.tensor(list(prompt), dtype=torch.int64, device=device)
    with torch.inference_mode():
        if before:
            passed(given[:before], 0, prompts=True)
        guesses = given[-1:].repeat(length)
        passes = 0
        for _ in range(length):
            passes += 1
            hidden = passed(torch.cat((given[-1:], guesses[:-1])), before, prompts=False)
            found = model.logits(hidden).argmax(dim=-1)
            unchanged = bool((found == guesses).all())
            guesses = found
            if unchanged:
                break
    return JacobiDecoded(guesses.tolist(), passes)

"""Computes batches in which decoding sequences speculate: propose, verify, keep what stands.

One pass of the target serves the batch: several query tokens of each decoding sequence and its
prompts together. What a tree's sequence accepts is copied together in the cache, behind what it
had; what it rejects is overwritten by the next iteration.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from calibrate.engine.executor import Outcome
from calibrate.engine.speculation.draft_model import DraftModelProposer
from calibrate.engine.speculation.jacobi import JacobiProposer
from calibrate.engine.speculation.ngram import NgramProposer
from calibrate.engine.speculation.packed import Packing, Prompts, to_device
from calibrate.engine.speculation.proposer import Proposal, Proposer, Verified
from calibrate.engine.speculation.token_tree import TokenTree
from calibrate.engine.speculation.verification import Verdict, by_rejection, greedy
from calibrate.engine.transformer_executor import TransformerExecutor, emitters
from kernels.logits_and_sample import restricted_probabilities, sample
from kernels.transformer import Transformer
from sim.batch import Batch, PrefillChunk
from sim.request import Request
from sim.speculation import Speculation
from sim.speculation.acceptance import ObservedAcceptance

METHODS = ("draft_model", "tree", "ngram", "jacobi")


class SpeculatingExecutor(TransformerExecutor):
    """A model whose decodes speculate.

    Args:
        speculation: the technique, with the acceptance that it is to be noted in.
        draft: the model that drafts, of methods that have one.
        rest: as for `TransformerExecutor`.

    Raises: ValueError for a technique that needs more than a model has, or for a draft that is none
    of this target.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        speculation: Speculation,
        draft: Transformer | None,
        **rest: Any,
    ) -> None:
        tree = _tree_of(speculation, model, draft)
        super().__init__(model, **rest)
        assert isinstance(speculation.acceptance, ObservedAcceptance)
        self._observed = speculation.acceptance
        self._tree = tree
        self._depths = np.array(tree.depths)
        self._words = np.array(tree.words, dtype=np.uint64).view(np.int64)
        self._generator = torch.Generator(device=self.device).manual_seed(self.sampling.seed)
        self._longest = model.config.max_positions
        self._draft: DraftModelProposer | None = None
        if draft is not None:
            self._longest = min(self._longest, draft.config.max_positions)
            self._draft = DraftModelProposer(
                draft,
                tree,
                num_blocks=rest["num_blocks"],
                block_size=rest["block_size"],
                tokens_of=self._tokens.of,
                probabilities=self._probabilities if self._samples else None,
                generator=self._generator,
                swap_blocks=rest.get("swap_blocks", 0),
            )
            self._hosts.append(self._draft.host)
        depth = speculation.shape.depth
        own = NgramProposer if speculation.method == "ngram" else JacobiProposer
        self._proposer: Proposer = self._draft or own(depth, self.device)

    @property
    def _samples(self) -> bool:
        return self.sampling.temperature > 0

    def drop(self, request: Request) -> list[list[int]]:
        for sequence in self._tokens.sequences_of(request):
            self._proposer.drop(sequence)
            self._observed.drop(sequence)
        return super().drop(request)

    def run(self, batch: Batch, decoding: Collection[Request]) -> Outcome:
        started_s = time.perf_counter()
        returned = batch.swapped_in
        self._swap(batch)
        packing = self._packed(batch, decoding, returned)
        marks = [self._mark()]
        prepared_s = time.perf_counter() - started_s
        proposal = self._proposer.propose(batch, packing.members, packing)
        marks.append(self._mark())
        logits, finite, width = self._verify(batch, packing, proposal)
        marks.append(self._mark())
        began_s = time.perf_counter()
        outcome = self._taken(batch, packing, proposal, logits, width)
        alright = finite.tolist()
        rows = self._rows_of(batch, packing, width)
        bad = [request for request, good in zip(rows, alright, strict=True) if not good]
        outcome.not_finite = list(dict.fromkeys(bad))
        outcome.prepare_s = prepared_s
        if self._on_gpu:
            outcome.draft_s, outcome.forward_s = (
                marks[0].elapsed_time(mark) / 1e3 for mark in marks[1:]
            )
        else:
            outcome.draft_s, outcome.forward_s = (mark - marks[0] for mark in marks[1:])
        outcome.sample_s = time.perf_counter() - began_s
        return outcome

    # -- inputs -------------------------------------------------------------------------------

    def _packed(
        self, batch: Batch, decoding: Collection[Request], returned: Sequence[Request]
    ) -> Packing:
        rows, size = self._rows, self.block_size
        rows.keep_only(decoding)
        count = batch.num_decodes
        if count:
            for request in decoding:
                if request not in rows:
                    rows.add(request)
        rows.refresh(returned, every=True)
        members = rows.requests[:count]
        stored = np.array([one.num_computed_tokens for one in members], dtype=np.int64)
        held = np.array([len(one.block_table) for one in members], dtype=np.int64) * size
        room = np.minimum(np.minimum(held, rows.tables.shape[1] * size), self._longest)
        asked = batch.verification.per_sequence if batch.verification is not None else None
        widths = np.array([(asked or {})[one] for one in members], dtype=np.int64)
        # Beyond the longest sequence there are no slots, and nothing that would be kept.
        if self._tree.is_chain:
            widths = np.minimum(widths, room - stored)
        else:
            widths = np.where(stored + widths <= room, widths, 1)
        return Packing(
            members, rows.tables[:count], rows.blocks[:count], stored, room, widths, size,
            self._prompts(batch.prefills),
        )  # fmt: skip

    def _prompts(self, chunks: Sequence[PrefillChunk]) -> Prompts | None:
        if not chunks:
            return None
        size, tokens, positions, slots = self.block_size, [], [], []
        tables = np.zeros((len(chunks), self._rows.tables.shape[1]), dtype=np.int32)
        for row, chunk in zip(tables, chunks, strict=True):
            request, start = chunk.request, chunk.cached_tokens
            stop = start + chunk.new_tokens
            place = np.arange(start, stop)
            table = np.array(request.block_table[: len(row)], dtype=np.int64)
            row[: len(table)] = table
            tokens.append(np.array(self._tokens.of(request)[start:stop], dtype=np.int64))
            positions.append(place)
            slots.append(table[place // size] * size + place % size)
        ends = [chunk.cached_tokens + chunk.new_tokens for chunk in chunks]
        starts = np.cumsum([0, *(chunk.new_tokens for chunk in chunks)])
        here = partial(to_device, device=self.device)
        return Prompts(
            token_ids=here(np.concatenate(tokens)),
            positions=here(np.concatenate(positions)),
            slot_mapping=here(np.concatenate(slots)),
            context_lens=here(np.array(ends)),
            tables=here(tables).to(torch.int32),
            starts=here(starts),
            has_past=any(chunk.cached_tokens for chunk in chunks),
        )

    # -- the target's pass --------------------------------------------------------------------

    def _verify(
        self, batch: Batch, packing: Packing, proposal: Proposal
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Logits of every verified token, D · width rows, and of prompts that end; which are sound.

        A sequence's tokens are on the right of its rows.
        """
        count = len(packing.members)
        # One width or the other, whatever is left to draft: kernels are compiled by it.
        width = len(self._tree) if packing.widths.max(initial=1) > 1 else 1
        tokens = proposal.tokens[:, :width].clone()
        last = [self._tokens.of(one)[at] for one, at in
                zip(packing.members, packing.stored.tolist(), strict=True)]  # fmt: skip
        tokens[:, 0] = to_device(np.array(last, dtype=np.int64), self.device)
        masked = not self._tree.is_chain and width > 1
        inputs = packing.batch(
            tokens,
            starts=packing.stored,
            counts=packing.widths,
            depths=self._depths[:width] if masked else None,
            words=self._words if masked else None,
            with_prompts=True,
        )
        hidden = self.model.forward(inputs, self.kv_cache)
        rows, end = list(range(count * width)), count * width
        for chunk in batch.prefills:
            rows += [end + chunk.request.num_tokens - chunk.cached_tokens - 1] * len(
                emitters(chunk)
            )
            end += chunk.new_tokens
        if len(rows) < len(hidden):
            hidden = hidden.index_select(0, to_device(np.array(rows, dtype=np.int64), self.device))
        logits = self.model.logits(hidden)
        finite = logits.isfinite().all(dim=1)
        if count:  # what padding holds is nobody's
            used = np.arange(width) >= width - packing.widths[:, None]
            finite[: count * width] |= to_device(~used.reshape(-1), self.device).bool()
        return logits, finite, width

    def _rows_of(self, batch: Batch, packing: Packing, width: int) -> list[Request]:
        decodes = [one for one in packing.members for _ in range(width)]
        return decodes + [one for chunk in batch.prefills for one in emitters(chunk)]

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What tokens are drawn from: [rows, vocabulary]."""
        sampling, rows = self.sampling, len(logits)
        heat = torch.full((rows,), sampling.temperature, device=self.device)
        if sampling.top_k is None and sampling.top_p is None:
            return torch.softmax(logits.double() / heat[:, None], dim=-1)
        top_k, top_p = (
            None if limit is None else torch.full((rows,), limit, device=self.device)
            for limit in (sampling.top_k, sampling.top_p)
        )
        return restricted_probabilities(logits, heat, top_k, top_p)

    # -- outputs ------------------------------------------------------------------------------

    def _taken(
        self, batch: Batch, packing: Packing, proposal: Proposal, logits: torch.Tensor, width: int
    ) -> Outcome:
        """Verify every sequence, sample prompts that have ended, and note all tokens down."""
        outcome, members = Outcome(), packing.members
        count = len(members)
        ended = [one for chunk in batch.prefills for one in emitters(chunk)]
        known = [self._tokens.known_next(one, len(self._tree)) for one in members]
        verdicts: list[Verdict] = []
        predictions: list[list[int]]
        first_tokens: list[int]
        if self._samples:
            chosen = self._sample.choose(logits).tolist()
            if count:
                aligned = self._aligned(logits[: count * width], packing, width)
                verdicts = by_rejection(
                    self._tree, packing.widths, proposal, aligned, known, generator=self._generator
                )
        else:
            chosen = sample(logits, backend=self.model.backend).tolist()
        predictions = [
            chosen[row * width + width - wide : (row + 1) * width]
            for row, wide in enumerate(packing.widths.tolist())
        ]
        if not self._samples:
            drafts = proposal.tokens.tolist()
            verdicts = [
                greedy(self._tree, len(said), *each, known=sure)
                for said, each, sure in zip(
                    predictions, zip(drafts, predictions, strict=True), known, strict=True
                )
            ]
        self._keep(packing, verdicts)
        for request, found, said in zip(members, verdicts, predictions, strict=True):
            outcome.accepted[request] = len(found.path) - 1
            tokens = found.sampled[: request.output_tokens - request.num_generated_tokens]
            outcome.answers[request] = tokens
            self._proposer.verified(request, Verified(found.path, found.fed, said))
            self._tokens.extend(request, tokens, found.fed)
            self._observed.note(request, len(found.path) - 1)
            self._look_for_drafts(request)
        first_tokens = chosen[count * width :]
        self._tokens.note(ended, first_tokens)
        outcome.emitting, outcome.sampled = ended, first_tokens
        for request in ended:
            self._look_for_drafts(request)
        return outcome

    def _look_for_drafts(self, request: Request) -> None:
        found = self._proposer.emitted(request, self._tokens.of(request))
        self._observed.decide(request, found)

    def _aligned(self, logits: torch.Tensor, packing: Packing, width: int) -> torch.Tensor:
        """Probabilities after each node, nodes on the left: [D, nodes, vocabulary]."""
        count = len(packing.members)
        probabilities = self._probabilities(logits).view(count, width, -1)
        place = np.arange(len(self._tree)) + (width - packing.widths[:, None])
        place = np.minimum(place, width - 1)
        index = to_device(place, self.device)[:, :, None].expand(-1, -1, probabilities.shape[2])
        return probabilities.gather(1, index)

    def _keep(self, packing: Packing, verdicts: Sequence[Verdict]) -> None:
        """Copy the keys and values of accepted nodes to where they belong."""
        size, source, target = self.block_size, [], []
        for row, (found, stored) in enumerate(zip(verdicts, packing.stored.tolist(), strict=True)):
            blocks = packing.blocks[row]
            for place, node in enumerate(found.path):
                if node != place:
                    a, b = stored + node, stored + place
                    source.append(int(blocks[a // size]) * size + a % size)
                    target.append(int(blocks[b // size]) * size + b % size)
        if not source:
            return
        a, b = (to_device(np.array(slots), self.device) for slots in (source, target))
        for cache in (self.kv_cache, *([] if self._draft is None else [self._draft.kv_cache])):
            slots = cache.view(cache.shape[0], 2, -1, *cache.shape[4:])
            slots[:, :, b] = slots[:, :, a]  # read before anything is written


def _tree_of(speculation: Speculation, model: Transformer, draft: Transformer | None) -> TokenTree:
    if speculation.method not in METHODS:
        raise ValueError(
            f"speculation.method {speculation.method}: the engine has {', '.join(METHODS)}; the "
            "others need weights that no checkpoint of the target has"
        )
    if (draft is not None) != (speculation.method in ("draft_model", "tree")):
        raise ValueError(f"speculation.method {speculation.method}: which model drafts?")
    if draft is not None and draft.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the draft has {draft.config.vocab_size} tokens, the target "
            f"{model.config.vocab_size}: its proposals would mean nothing"
        )
    tree = TokenTree.of(speculation.shape)
    if model.config.window and not tree.is_chain:
        raise ValueError("a tree of drafts cannot be verified under sliding-window attention")
    return tree

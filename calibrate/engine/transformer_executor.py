"""Computes a scheduled batch for real: batch -> tensors -> forward pass -> one token a sequence.

Decodes and prefills of one iteration go through the model together (selective batching, Orca,
OSDI 2022, section 3.2). A batch replays a CUDA graph captured for the next larger shape, with
prompts or without (`IterationGraphs`); one that fits in none is launched kernel by kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from calibrate.engine.decode_rows import DecodeRows
from calibrate.engine.executor import Outcome, Sampling
from calibrate.engine.host_blocks import HostBlocks
from calibrate.engine.in_flight import Computed, Inputs, Launched, Prepared
from calibrate.engine.iteration_graphs import (
    PROMPT_TOKENS,
    IterationGraphs,
    Shape,
    Staged,
    mixed_shapes,
)
from calibrate.engine.prompt_tables import PromptTables
from calibrate.engine.sampler import Sampler
from calibrate.engine.sequence_tokens import SequenceTokens
from kernels.copy_blocks import copy_blocks
from kernels.transformer import ForwardBatch, Transformer
from sim.batch import Batch, PrefillChunk
from sim.request import Request


class TransformerExecutor:
    """A model on one device, its paged KV cache, and the sequences being served.

    Args:
        model: weights and forward pass.
        num_blocks: blocks of the KV cache.
        max_num_seqs: most sequences that decode at once.
        max_blocks: most blocks of a sequence that are ever read.
        swap_blocks: blocks of pinned host memory for sequences that are swapped out.
        capture_sizes: decodes to capture CUDA graphs for; none: every launch is eager.
        max_prompt_tokens: most tokens of prompts in an iteration, to capture those too; 0: they are
            launched kernel by kernel.
        kv_cache: one that is there already, of that many blocks; None: a new one.

    Raises: MemoryError with what was needed when the cache does not fit.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_blocks: int,
        swap_blocks: int = 0,
        capture_sizes: Sequence[int] = (),
        max_prompt_tokens: int = 0,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        kv_cache: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.device = model.embeddings.device
        self.block_size = block_size
        self._on_gpu = self.device.type == "cuda"
        try:
            self.kv_cache = (
                model.new_kv_cache(num_blocks, block_size) if kv_cache is None else kv_cache
            )
            self._hosts = [HostBlocks(self.kv_cache, swap_blocks, backend=model.backend)]
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            needed = num_blocks * block_size * model.kv_bytes_per_token / 2**30
            raise MemoryError(
                f"a KV cache of {num_blocks} blocks needs {needed:.2f} GiB on {self.device} and "
                f"{swap_blocks} blocks on the host: {str(error).splitlines()[0]}"
            ) from None
        self.sampling = sampling
        self._rows = DecodeRows(max_num_seqs, max_blocks, self.device, block_size=block_size)
        self._tokens = SequenceTokens()
        self._prompt_tables = PromptTables()
        self._counting = np.arange(block_size * max_blocks)
        self._sample = Sampler(model, sampling)
        self._decoding: Collection[Request] | None = None  # whom the rows are
        self._decodes: list[Request] = []  # the rows' sequences, as of `_order`
        self._order = -1
        self._worker: ThreadPoolExecutor | None = None
        most = min(max_prompt_tokens, PROMPT_TOKENS[-1]) if capture_sizes else 0
        self._graphs = IterationGraphs(
            model,
            self.kv_cache,
            self._rows.tables,
            head=self._sample if self._sample.is_greedy else lambda hidden: hidden,
            most_prompt_tokens=most,
        )
        if capture_sizes:
            decodes = [size for size in capture_sizes if size <= max_num_seqs]
            self._graphs.capture(decodes, mixed_shapes(max_num_seqs, most) if most else ())

    # -- sequences ----------------------------------------------------------------------------

    def add(self, request: Request, prompt: np.ndarray, answer: np.ndarray) -> None:
        self._tokens.add(request, prompt, answer)

    def drop(self, request: Request) -> list[list[int]]:
        for host in self._hosts:
            host.release(request)
        for sequence in self._tokens.sequences_of(request):
            self._prompt_tables.drop(sequence)
        return self._tokens.drop(request)

    # -- one iteration ------------------------------------------------------------------------

    def run(self, batch: Batch, decoding: Collection[Request]) -> Outcome:
        prepared = self.prepare(batch, decoding)
        try:
            return self.collect(self.launch(prepared))
        except (RuntimeError, MemoryError):  # of memory: what is left of the batch comes again
            if prepared.count:
                self._rows.step(-1)
            self._decoding = None
            raise

    def prepare(self, batch: Batch, decoding: Collection[Request]) -> Prepared:
        """All of a batch's inputs but what the batch before it is still to sample.

        Moves blocks first: with batches in flight none may be swapped or copied.
        """
        started_s = time.perf_counter()
        returned = batch.swapped_in
        self._swap(batch)
        if batch.copies:
            pairs = torch.tensor(batch.copies, dtype=torch.int64)
            copy_blocks(self.kv_cache, self._to_device(pairs), backend=self.model.backend)
        rows, count = self._rows, batch.num_decodes  # all or none: some compute prompts alone
        newcomers: list[tuple[Request, int]] = []
        try:
            if decoding is not self._decoding:
                newcomers = self._admit(decoding, count)
            # A copy replaces a block in the middle of a table.
            rows.refresh(list(rows.requests) if batch.copies else returned)
            if self._order != rows.version:
                self._decodes, self._order = list(rows.requests), rows.version
            emitting: Sequence[Request] = self._decodes if count == len(self._decodes) else []
            ended = [one for chunk in batch.prefills for one in emitters(chunk)]
            if ended:  # else it is the same list as before
                emitting = [*emitting, *ended]
            shape = self._graphs.shape_for(batch, count)
            staged, inputs, places = None, None, list[int]()
            if shape is None:
                inputs = self._inputs_of(batch, count)
            else:
                staged, places = self._stage(shape, batch, count)
            prepared = Prepared(count, emitting, newcomers, staged, inputs, places)
        except (RuntimeError, MemoryError):  # newcomers have no token yet: they come again
            self._decoding = None
            new = {request for request, _ in newcomers}
            rows.keep_only([request for request in rows.requests if request not in new])
            raise
        if count:
            rows.step()
        prepared.order = rows.version
        prepared.host_s = time.perf_counter() - started_s
        return prepared

    def _admit(self, decoding: Collection[Request], count: int) -> list[tuple[Request, int]]:
        """Let the rows be those who decode; returns who has come, and where its token is."""
        rows = self._rows
        self._decoding = None
        rows.keep_only(decoding)
        if not count:
            return []
        newcomers = []
        for request in decoding:
            if request not in rows:
                rows.add(request)
                newcomers.append((request, request.num_computed_tokens))
        self._decoding = decoding
        return newcomers

    def _swap(self, batch: Batch) -> None:
        """Move blocks to the host and back; what has been moved is taken off the batch.

        So when memory runs out, the first that is left is the one that could not be moved.
        """
        while batch.swapped_out:
            for host in self._hosts:
                host.swap_out(*batch.swapped_out[0])
            batch.swapped_out = batch.swapped_out[1:]
        while batch.swapped_in:
            for host in self._hosts:
                host.swap_in(batch.swapped_in[0])
            batch.swapped_in = batch.swapped_in[1:]

    def launch(self, prepared: Prepared) -> Launched:
        """Fill in the tokens and let the device compute; a GPU is not waited for."""
        started_s = time.perf_counter()
        for request, position in prepared.newcomers:
            self._rows.set_token(request, self._tokens.of(request)[position])
        tokens, staged = self._rows.tokens[: prepared.count], prepared.staged
        if staged is not None:
            staged.tokens[: prepared.count] = tokens
            work = partial(self._replayed, staged, prepared)
        else:
            assert prepared.inputs is not None
            prepared.inputs.packed[: prepared.count] = tokens
            work = partial(self._forward, self._forward_batch(prepared.inputs), prepared.inputs)
        prepared.host_s += time.perf_counter() - started_s
        if self._worker is not None:
            return Launched(prepared, self._worker.submit(self._apart, work))
        return Launched(prepared, work())

    def collect(self, launched: Launched) -> Outcome:
        """Wait for a launched batch and take its tokens in."""
        found = launched.computed
        if isinstance(found, Future):
            found = found.result()
        result, marks = found
        prepared, count = launched.prepared, launched.prepared.count
        outcome = Outcome()
        began_s = time.perf_counter()
        sampled = result.tolist()  # waits for the device
        if prepared.staged is not None:
            sampled = _emitted(sampled, prepared)
        if sampled and min(sampled) < 0:
            outcome.not_finite = [
                request
                for request, token in zip(prepared.emitting, sampled, strict=True)
                if token < 0
            ]
            sampled = [token if token >= 0 else ~token for token in sampled]
        fed = self._tokens.note(prepared.emitting, sampled)
        outcome.emitting, outcome.sampled = prepared.emitting, sampled
        if self._rows.version == prepared.order:
            self._rows.tokens[:count] = fed[:count]
        else:  # the next batch has been prepared meanwhile
            for request, token in zip(prepared.emitting[:count], fed, strict=False):
                self._rows.set_token(request, token)
        outcome.prepare_s = prepared.host_s
        if self._on_gpu:
            outcome.forward_s = marks[0].elapsed_time(marks[1]) / 1e3
            outcome.sample_s = marks[1].elapsed_time(marks[2]) / 1e3
        else:
            outcome.forward_s = marks[1] - marks[0]
            outcome.sample_s = marks[2] - marks[1] + time.perf_counter() - began_s
        return outcome

    def compute_apart(self) -> None:
        """From now on a CPU computes on a thread of its own, so that `launch` returns at once.

        A GPU does that by itself.
        """
        if not self._on_gpu and self._worker is None:
            # Its tables are the next batch's while it computes: a GPU sends those afterwards.
            self._graphs.forget()
            threads = torch.get_num_threads()
            self._worker = ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads))

    def _apart(self, work: Callable[[], Computed]) -> Computed:
        """Work on a thread of its own, where inference mode is to be entered again."""
        with torch.inference_mode():
            return work()

    def _replayed(self, staged: Staged, prepared: Prepared) -> Computed:
        """A captured iteration: its tokens are part of it where nothing is drawn for them."""
        marks = [self._mark()]
        result = self._graphs.replay(staged)
        marks.append(self._mark())
        if not self._sample.is_greedy:
            result = self._sample(result)
            marks.append(self._mark())
        else:
            marks.append(marks[1])
        return result, marks

    def _forward(self, batch: ForwardBatch, inputs: Inputs) -> Computed:
        marks = [self._mark()]
        hidden = self._emitting(inputs, self.model.forward(batch, self.kv_cache))
        marks.append(self._mark())
        result = self._sample(hidden)
        marks.append(self._mark())
        return result, marks

    def longest_context(self, count: int) -> int:
        """Of the first `count` decodes of the last iteration, its new token included."""
        return int(self._rows.context[:count].max(initial=0))

    # -- inputs -------------------------------------------------------------------------------

    def _stage(self, shape: Shape, batch: Batch, count: int) -> tuple[Staged, list[int]]:
        """A captured iteration's inputs but its decodes' tokens, and where its prompts emit."""
        rows, staged = self._rows, self._graphs.stage(shape)
        new_tokens = sum(chunk.new_tokens for chunk in batch.prefills)
        staged.pad(count, new_tokens)
        if count:
            context = rows.context[:count]
            staged.positions[:count] = context
            staged.slots[:count] = rows.slots(count)
            np.add(context, 1, out=staged.contexts[:count])
        first, begin, places = staged.shape.decodes, 0, list[int]()
        for number, chunk in enumerate(batch.prefills):
            end = begin + chunk.new_tokens
            inside = slice(first + begin, first + end)
            self._chunk(
                chunk, staged.tokens[inside], staged.positions[inside], staged.slots[inside]
            )
            staged.contexts[first + number] = chunk.cached_tokens + chunk.new_tokens
            staged.starts[number] = begin
            self._prompt_tables.copy(chunk, staged.tables[number])
            last = chunk.request.num_tokens - chunk.cached_tokens - 1
            staged.emitting[number] = first + begin + min(last, chunk.new_tokens - 1)
            places += [first + number] * len(emitters(chunk))
            begin = end
        return staged, places

    def _chunk(
        self, chunk: PrefillChunk, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> None:
        """Fill in a chunk's tokens, their positions and their slots: [new_tokens] each."""
        request, start, size = chunk.request, chunk.cached_tokens, self.block_size
        stop = start + chunk.new_tokens
        known = self._tokens.between(request, start, stop)
        tokens[: len(known)] = known
        tokens[len(known) :] = 0  # padding of request-level batches: computed and never read
        if stop > len(self._counting):
            self._counting = np.arange(2 * stop)
        positions[:] = self._counting[start:stop]
        first = start // size
        table = np.array(request.block_table[first : -(-stop // size)], dtype=np.int64)
        every = (table[:, None] * size + self._counting[:size]).reshape(-1)  # of whole blocks
        slots[:] = every[start - first * size : stop - first * size]

    def _inputs_of(self, batch: Batch, count: int) -> Inputs:
        rows = self._rows
        tokens, positions = [np.zeros(count, dtype=np.int64)], [rows.context[:count]]
        slots, contexts = [rows.slots(count)], [rows.context[:count] + 1]
        lengths, emitting, end = [0], list(range(count)), count
        for chunk in batch.prefills:
            columns = [np.empty(chunk.new_tokens, dtype=np.int64) for _ in range(3)]
            self._chunk(chunk, *columns)
            for column, values in zip((tokens, positions, slots), columns, strict=True):
                column.append(values)
            start = chunk.cached_tokens
            contexts.append(np.array([start + chunk.new_tokens], dtype=np.int64))
            lengths.append(chunk.new_tokens)
            emitting += [end + chunk.request.num_tokens - start - 1] * len(emitters(chunk))
            end += chunk.new_tokens
        arrays = [np.concatenate(column) for column in (tokens, positions, slots, contexts)]
        return Inputs(
            packed=np.concatenate([one for array in arrays for one in (array, *_to_even(array))]),
            num_tokens=len(arrays[0]),
            num_decodes=count,
            starts=np.cumsum(lengths, dtype=np.int64),
            tables=self._tables(batch, count),
            emitting=emitting,
            has_past=any(chunk.cached_tokens for chunk in batch.prefills),
        )

    def _forward_batch(self, inputs: Inputs) -> ForwardBatch:
        packed = self._to_device(torch.from_numpy(inputs.packed))
        total, prefills = inputs.num_tokens, len(inputs.starts) - 1
        column = total + total % 2
        token_ids, position_ids, slot_mapping = (
            packed[start : start + total] for start in range(0, 3 * column, column)
        )
        context_lens = packed[3 * column :][: inputs.num_decodes + prefills]
        return ForwardBatch(
            token_ids=token_ids,
            positions=position_ids,
            slot_mapping=slot_mapping,
            block_tables=inputs.tables,
            context_lens=context_lens,
            num_decodes=inputs.num_decodes,
            cu_seqlens=self._to_device(torch.from_numpy(inputs.starts)) if prefills else None,
            has_past=inputs.has_past,
        )

    def _tables(self, batch: Batch, count: int) -> torch.Tensor:
        """Block tables of the decodes' rows and of the prefills: [D + P, max_blocks]."""
        decodes = self._rows.tables[:count]
        if not batch.prefills:
            # A thread that computes must not see the next batch's tables.
            return decodes if self._worker is None else decodes.clone()
        width = self._rows.tables.shape[1]
        tables = np.zeros((len(batch.prefills), width), dtype=np.int32)
        for row, chunk in zip(tables, batch.prefills, strict=True):
            table = chunk.request.block_table[:width]
            row[: len(table)] = table
        return torch.cat((decodes, self._to_device(torch.from_numpy(tables))))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._on_gpu:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    # -- outputs ------------------------------------------------------------------------------

    def _emitting(self, inputs: Inputs, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that a token is sampled from."""
        if len(inputs.starts) == 1:
            return hidden
        return hidden.index_select(
            0, self._to_device(torch.tensor(inputs.emitting, dtype=torch.int64))
        )

    def _mark(self) -> Any:
        """A time of the device: an event, or seconds."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _to_even(array: np.ndarray) -> list[np.ndarray]:
    """What an array of 8-byte numbers lacks to a multiple of 16 bytes."""
    return [np.zeros(1, dtype=array.dtype)] if len(array) % 2 else []


def _emitted(sampled: list[int], prepared: Prepared) -> list[int]:
    """Of what a captured iteration leaves, the tokens of those who emit one."""
    return sampled[: prepared.count] + [sampled[place] for place in prepared.rows]


def emitters(chunk: PrefillChunk) -> list[Request]:
    """Nobody before a prompt's end, then the request, once for every sample."""
    request = chunk.request
    if chunk.cached_tokens + chunk.new_tokens < request.num_tokens:
        return []
    group = request.group
    sampled = group is not None and request is group.request
    return [request] * (len(group.output_tokens) if group is not None and sampled else 1)

"""CUDA graphs of whole iterations, from token ids to tokens: a launch each, whatever they compute.

A graph has fixed shapes: so many decodes, so many tokens of prompts, so many prompts. A batch takes
the smallest captured shape that it fits in, and the rest is padding: decodes without a context,
tokens that write nothing and belong to no prompt, prompts without tokens. Launched kernel by kernel
a mixed iteration costs the host one launch for every kernel of every layer.

Greedy sampling is part of a graph; sampling from a distribution follows it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from kernels.transformer import ForwardBatch, Transformer
from sim.batch import Batch

CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8))  # vLLM's default sizes up to 256
# Tokens of prompts beside decodes, one and a half times or less from one to the next: a sixth of a
# batch is padding on average. Every shape takes two passes at the start, launch by launch.
PROMPT_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
MIXED_DECODES = (0, 32, 128)  # and max_num_seqs; a padded decode costs its row of every product
MOST_PROMPTS = 8  # of a mixed graph

Work = Callable[[], torch.Tensor]
Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a graph is captured for; ``prompt_tokens`` 0: decodes alone."""

    decodes: int
    prompt_tokens: int = 0

    @property
    def prompts(self) -> int:
        """Prompts that there is room for."""
        return MOST_PROMPTS if self.prompt_tokens else 0

    @property
    def columns(self) -> list[int]:
        """Where tokens, positions, slots, contexts, prompts' starts and rows that emit begin.

        Each at an even place, so on 16 bytes; the last is the end.
        """
        tokens = self.decodes + self.prompt_tokens
        sizes = [tokens, tokens, tokens, self.decodes + self.prompts]
        sizes += [self.prompts + 1, self.prompts] if self.prompts else []
        places = [0]
        for size in sizes:
            places.append(places[-1] + size + size % 2)
        return places


class Replay(Protocol):
    """Something captured, to be done again."""

    def replay(self) -> object:
        """Do it."""


class Repeated:
    """What a processor has in place of a CUDA graph: the same work, called again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def replay(self) -> None:
        self._work()


class IterationGraphs:
    """The captured iterations of one model over one KV cache.

    Args:
        kv_cache: the cache that they read and write.
        tables: [max_num_seqs, max_blocks] block tables of the decodes, on the device.
        head: hidden states of the rows that emit -> what a graph leaves of them: [rows, …].
        most_prompt_tokens: of an iteration.
    """

    def __init__(
        self,
        model: Transformer,
        kv_cache: torch.Tensor,
        tables: torch.Tensor,
        *,
        head: Head,
        most_prompt_tokens: int = 0,
    ) -> None:
        rows, width = tables.shape
        self._model, self._kv_cache, self._tables, self._head = model, kv_cache, tables, head
        largest = Shape(rows, max(most_prompt_tokens, 0))
        on_gpu = tables.device.type == "cuda"
        self.inputs = torch.zeros(largest.columns[-1], dtype=torch.int64, device=tables.device)
        self._prompt_tables = torch.zeros(
            (largest.prompts, width), dtype=torch.int32, device=tables.device
        )
        # Two of each: the other may still be on its way.
        self._staged = [
            torch.zeros(largest.columns[-1], dtype=torch.int64, pin_memory=on_gpu) for _ in range(2)
        ]
        self._staged_tables = [
            torch.zeros((largest.prompts, width), dtype=torch.int32, pin_memory=on_gpu)
            for _ in range(2)
        ]
        self._arrays = [one.numpy() for one in self._staged]
        self._table_arrays = [one.numpy() for one in self._staged_tables]
        self._turn = 0
        self._stages: dict[tuple[Shape, int], Staged] = {}
        self._graphs: dict[Shape, Replay] = {}
        self._results: dict[Shape, torch.Tensor] = {}
        self._pool: Any = None
        self._decodes: list[int] = []  # captured, ascending
        self._mixed: dict[int, list[int]] = {}  # decodes -> tokens of prompts captured beside them

    # -- which ------------------------------------------------------------------------------------

    def shape_for(self, batch: Batch, count: int) -> Shape | None:
        """The smallest captured shape that a batch with `count` decodes fits in."""
        prompts = batch.prefills
        if not prompts:
            at = bisect_left(self._decodes, count) if count else len(self._decodes)
            return Shape(self._decodes[at]) if at < len(self._decodes) else None
        if len(prompts) > MOST_PROMPTS or not self._mixed:
            return None
        decodes = min((size for size in self._mixed if size >= count), default=None)
        if decodes is None:
            return None
        sizes = self._mixed[decodes]
        at = bisect_left(sizes, sum(chunk.new_tokens for chunk in prompts))
        return Shape(decodes, sizes[at]) if at < len(sizes) else None

    # -- inputs -----------------------------------------------------------------------------------

    def stage(self, shape: Shape) -> Staged:
        """Host memory for a batch's inputs, all of it padding."""
        self._turn = turn = 1 - self._turn
        staged = self._stages.get((shape, turn))
        if staged is None:
            staged = Staged(shape, self._arrays[turn], self._table_arrays[turn], turn)
            self._stages[shape, turn] = staged
        return staged

    def replay(self, staged: Staged) -> torch.Tensor:
        """Send a batch's inputs and compute it: what the head left, [decodes + prompts, …]."""
        shape, turn, end = staged.shape, staged.turn, staged.end
        self.inputs[:end].copy_(self._staged[turn][:end], non_blocking=True)
        if shape.prompts:
            self._prompt_tables.copy_(self._staged_tables[turn], non_blocking=True)
        self._graphs[shape].replay()
        return self._results[shape]

    # -- capturing --------------------------------------------------------------------------------

    def capture(self, decodes: Iterable[int], mixed: Sequence[Shape] = ()) -> None:
        """Capture an iteration of each shape, the largest first: they share one memory pool."""
        shapes = [*mixed, *map(Shape, decodes)]
        for shape in sorted(shapes, key=lambda one: -(one.decodes + one.prompt_tokens)):
            self.stage(shape).pad(0, 0)
            self.inputs.copy_(self._staged[self._turn])
            self._graphs[shape] = self._captured(shape)
            if shape.prompts:
                self._mixed.setdefault(shape.decodes, []).insert(0, shape.prompt_tokens)
        self._decodes = sorted(one.decodes for one in self._graphs if not one.prompts)
        for sizes in self._mixed.values():
            sizes.sort()

    def forget(self) -> None:
        """Nothing is captured any more: every batch is launched kernel by kernel."""
        self._decodes, self._mixed = [], {}
        self._graphs.clear()
        self._results.clear()

    def _captured(self, shape: Shape) -> Replay:
        """On a processor the same passes, padding and all, are computed when they are asked for."""
        if self.inputs.device.type != "cuda":

            def again() -> None:
                self._results[shape] = self._iteration(shape)

            again()
            return Repeated(again)
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            self._iteration(shape)  # compiles kernels and measures cuBLAS against ours
        torch.cuda.current_stream().wait_stream(warm_up)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._results[shape] = self._iteration(shape)
        self._pool = graph.pool()
        return graph  # type: ignore[no-any-return]

    def _iteration(self, shape: Shape) -> torch.Tensor:
        decodes, prompts = shape.decodes, shape.prompts
        tokens = decodes + shape.prompt_tokens
        places = shape.columns
        token_ids, positions, slot_mapping = (
            self.inputs[place : place + tokens] for place in places[:3]
        )
        tables = self._tables[:decodes]
        if prompts:
            tables = torch.cat((tables, self._prompt_tables))
        hidden = self._model.forward(
            ForwardBatch(
                token_ids=token_ids,
                positions=positions,
                slot_mapping=slot_mapping,
                block_tables=tables,
                context_lens=self.inputs[places[3] :][: decodes + prompts],
                num_decodes=decodes,
                cu_seqlens=self.inputs[places[4] :][: prompts + 1] if prompts else None,
            ),
            self._kv_cache,
        )
        if prompts:
            ends = hidden.index_select(0, self.inputs[places[5] :][:prompts])
            hidden = torch.cat((hidden[:decodes], ends))
        return self._head(hidden)


class Staged:
    """The inputs of one iteration in host memory, in the layout of a shape."""

    def __init__(self, shape: Shape, array: np.ndarray, tables: np.ndarray, turn: int) -> None:
        decodes, tokens = shape.decodes, shape.decodes + shape.prompt_tokens
        places = shape.columns
        self.shape, self.turn, self.end = shape, turn, places[-1]
        self.tokens, self.positions, self.slots = (
            array[place : place + tokens] for place in places[:3]
        )
        self.contexts = array[places[3] : places[3] + decodes + shape.prompts]
        if shape.prompts:
            self.starts = array[places[4] : places[4] + shape.prompts + 1]
            self.emitting = array[places[5] : places[5] + shape.prompts]
            self.tables = tables

    def pad(self, count: int, prompt_tokens: int) -> None:
        """Make padding of all but `count` decodes and the first so many tokens of prompts."""
        decodes = self.shape.decodes
        for first, end in ((count, decodes), (decodes + prompt_tokens, len(self.tokens))):
            if first < end:
                self.tokens[first:end] = self.slots[first:end] = -1
                self.positions[first:end] = 0
        self.contexts[count:decodes] = 0
        if self.shape.prompts:
            self.contexts[decodes:] = 0
            self.starts[:] = prompt_tokens
            self.emitting[:] = 0


def mixed_shapes(max_num_seqs: int, most_prompt_tokens: int) -> list[Shape]:
    """What to capture of iterations with prompts: the steps above, up to the engine's limits."""
    decodes = [size for size in MIXED_DECODES if size < max_num_seqs]
    decodes.append(max_num_seqs)
    tokens = [size for size in PROMPT_TOKENS if size < most_prompt_tokens]
    tokens.append(most_prompt_tokens)
    return [Shape(some, many) for some in decodes for many in tokens]

"""CUDA graphs of decode passes: one a batch size, replayed for every smaller batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kernels.transformer import ForwardBatch, Transformer

CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8))  # vLLM's default sizes up to 256


class DecodeGraphs:
    """The captured passes of one model over one KV cache.

    ``inputs``: [4, rows] int64, token, position, slot and context length of every row; what a graph
    reads. Rows beyond the batch have token and slot -1.

    Args:
        kv_cache: the cache that the passes read and write.
        tables: [rows, max_blocks], block tables of the rows.
    """

    def __init__(self, model: Transformer, kv_cache: torch.Tensor, tables: torch.Tensor) -> None:
        self.inputs = torch.zeros((4, len(tables)), dtype=torch.int64, device=tables.device)
        self._model, self._kv_cache, self._tables = model, kv_cache, tables
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._hidden: dict[int, torch.Tensor] = {}

    def size_for(self, count: int) -> int:
        """The smallest captured batch that `count` rows fit in; 0 where there is none."""
        return min((size for size in self._graphs if size >= count), default=0) if count else 0

    def replay(self, size: int, count: int) -> torch.Tensor:
        """Hidden states of the first `count` rows of a pass captured for `size`."""
        self._graphs[size].replay()
        return self._hidden[size][:count]

    def capture(self, sizes: Iterable[int]) -> None:
        """Capture one decode pass a size, the largest first: they share one memory pool."""
        pool = None
        for size in sorted(sizes, reverse=True):
            batch = self._batch(size)
            warm_up = torch.cuda.Stream()
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):
                for _ in range(2):  # compiles kernels and measures cuBLAS against ours
                    self._model.forward(batch, self._kv_cache)
            torch.cuda.current_stream().wait_stream(warm_up)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._hidden[size] = self._model.forward(batch, self._kv_cache)
            pool = graph.pool()
            self._graphs[size] = graph

    def _batch(self, size: int) -> ForwardBatch:
        self.inputs[0] = self.inputs[2] = -1
        token_ids, positions, slot_mapping, context_lens = (row[:size] for row in self.inputs)
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            block_tables=self._tables[:size],
            context_lens=context_lens,
            num_decodes=size,
        )

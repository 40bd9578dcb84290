"""`dynamic`: request-level batching behind a queue that waits a little for more requests.

The dynamic batcher of NVIDIA's Triton Inference Server: when the engine is free, take the largest
preferred batch size that the queue can fill; if it can fill none, wait until the oldest request has
queued for ``max_queue_delay``, then take what there is. The batch runs as under `static`.
"""

from __future__ import annotations

from math import inf

from sim.schedulers.static import StaticScheduler


class DynamicScheduler(StaticScheduler):
    """`static` with preferred batch sizes and a maximum queue delay."""

    def _batch_size(self, now_s: float) -> int:
        waiting = self.pool.waiting
        self.wake_s = inf
        if not waiting:
            return 0
        preferred = self.config.preferred_batch_sizes or (self.config.max_num_seqs,)
        fillable = [size for size in preferred if size <= len(waiting)]
        if fillable:
            return max(fillable)
        oldest_s = waiting[0].arrival_s
        if self.config.queue is not None and self.config.queue.overtakes:
            oldest_s = min(request.arrival_s for request in waiting)
        due_s = oldest_s + self.config.max_queue_delay_s
        if now_s >= due_s:
            return min(len(waiting), self.config.max_num_seqs)
        self.wake_s = due_s
        return 0

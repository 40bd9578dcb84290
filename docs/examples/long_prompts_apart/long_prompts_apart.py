"""`long_prompts_apart`: as `chunked`, but never more than one long prompt in prefill.

Several long prompts that arrive together fill the token budget for many iterations, and short ones
behind them wait. Here a long prompt steps aside while another is being computed: whoever waits
behind it goes first.
"""

from __future__ import annotations

from sim.batch import Batch
from sim.schedulers.chunked import ChunkedScheduler

LONG = 4096  # tokens of prompt


class LongPromptsApart(ChunkedScheduler):
    """`chunked` with one seat for long prompts that are being prefilled."""

    def _admit(self, batch: Batch, budget: int, now_s: float) -> None:
        waiting = self.pool.waiting
        aside = []
        if any(request.prompt_tokens >= LONG for request in self.prefilling):
            aside = [request for request in waiting if request.prompt_tokens >= LONG]
            for request in aside:
                waiting.remove(request)
        super()._admit(batch, budget, now_s)
        for request in reversed(aside):
            waiting.appendleft(request)

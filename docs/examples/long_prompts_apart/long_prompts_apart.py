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
        if not any(request.prompt_tokens >= LONG for request in self.prefilling):
            super()._admit(batch, budget, now_s)
            return
        waiting = self.pool.waiting
        queue = list(waiting)
        aside = {request for request in queue if request.prompt_tokens >= LONG}
        for request in aside:
            waiting.remove(request)
        super()._admit(batch, budget, now_s)
        still = {*waiting, *aside}
        waiting.clear()
        for request in queue:  # whoever is left stands where it stood
            if request in still:
                waiting.append(request)

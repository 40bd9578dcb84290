"""Requests behind a front end: what their clients know of them, and what the engine does."""

from __future__ import annotations

from sim.records import RequestLog
from sim.request import NEVER, Request
from sim.scratch import Table

# Of a request, what both know, at different times.
CLIENT_TIMES = ("arrival_s", "first_token_s", "last_token_s", "finished_s")


class ClientLog(RequestLog):
    """Notes down what clients know of their requests beside what the engine does."""

    def __init__(self) -> None:
        super().__init__(**{f"client_{name}": "f8" for name in CLIENT_TIMES})

    def finish(self, request: Request, *, rejected: bool = False) -> None:
        first, last, sent_s = request.first_token, request.last_token, request.sent_s
        answered_s = request.finished_s
        if last is not None:
            answered_s = last.seen_s if last.at_s == answered_s else request.answered_s
        self._ended.add(
            (
                request.index, request.arrival_s, request.scheduled_s,
                NEVER if first is None else first.at_s, NEVER if last is None else last.at_s,
                request.finished_s, request.prompt_tokens,
                request.output_tokens, request.cached_tokens, request.preemptions, rejected,
                sent_s if sent_s == sent_s else request.arrival_s,  # NaN: it never got to one
                NEVER if first is None else first.seen_s, NEVER if last is None else last.seen_s,
                answered_s,
            )
        )  # fmt: skip


def as_clients_saw(requests: Table) -> None:
    """A `ClientLog`'s columns under their names: the client's times, then ``engine_…``."""
    for name in CLIENT_TIMES:
        requests[f"engine_{name}"] = requests[name]
        requests[name] = requests.pop(f"client_{name}")

"""The turns of vLLM's loop in a real run, and the chain of steps that a simulator is told of them.

A turn empties the engine's input queue, *decides* a batch, launches it, and takes in the *result*
of the oldest batch in flight; with asynchronous scheduling only once two are in flight. Simulated
time is simpler: a decision takes none, and falls on the moment at which a step ends or a request
arrives. So of a real run

- a decision is made when the loop finds its input queue empty: it knows the requests that were put
  there before, and no others;
- a step ends with the first decision after its result has been taken in, or when the loop finds
  nothing to do. So its duration holds all that it costs: to schedule, compute and sample it, and
  to send its tokens out. It begins with its own decision, or where the step before ends;
- a request arrives when it is put into the input queue, but at an engine with nothing to do when
  that has woken and decides;
- a decision that waits for no result comes one *launch* after the decision before, where simulated
  time would have none between them. With asynchronous scheduling that happens to an engine that
  has been given work and has one batch in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.vllm.workloads import Piece


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the loop; times in nanoseconds from the start of the run.

    decided: when its decision was made. slept: when the loop found nothing to do, if it has waited
    for a request since. tokens: that each request computes; empty where there was nothing to
    compute. preempted, hits, free_blocks: as in `Step`. result: when a batch's result had been
    taken in, if this turn took one in.
    """

    decided: int
    slept: int | None
    tokens: Mapping[str, int]
    preempted: tuple[str, ...]
    hits: Mapping[str, int]
    free_blocks: int
    result: int | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what came of it; first_turn, last_turn: which took in its first and last token.

    arrived: nanoseconds from the start of the run.
    """

    arrived: int
    prompt: tuple[Piece, ...]
    max_tokens: int
    output_tokens: int
    first_turn: int
    last_turn: int

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prompt)


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps one after the other; nanoseconds from the start of the run.

    starts, ends: of each step. collected: the turn that took its result in. arrives: when each
    request does. woken: which of them came to an engine with nothing to do. launches: from the
    decision before to each that waited for no result.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    collected: tuple[int, ...]
    arrives: tuple[int, ...]
    woken: tuple[int, ...]
    launches: tuple[tuple[int, int], ...]


def chain(turns: Sequence[Turn], requests: Sequence[Sent]) -> Chain:
    """The chain of a run; `requests` in order of arrival."""
    decisions: list[int] = []
    ends: list[int] = []
    collected: list[int] = []
    arrives: list[int] = []
    woken: list[int] = []
    launches: list[tuple[int, int]] = []
    answered = Counter(one.last_turn for one in requests)
    unanswered = in_flight = 0
    launched: int | None = None  # when the decision before was made, if it waited for no result
    for number, turn in enumerate(turns):
        resting = not unanswered and not in_flight
        for one in requests[len(arrives) :]:
            assert one.arrived != turn.decided, "nobody can tell whether it was seen"
            if one.arrived > turn.decided:
                break
            if resting:
                woken.append(len(arrives))
            arrives.append(turn.decided if resting else one.arrived)
            unanswered += 1
        # vLLM goes round once more where all that is running was preempted.
        idle = not turn.tokens and not in_flight and unanswered > 0
        if len(ends) < len(collected) and not idle:
            ends.append(turn.decided if turn.slept is None else turn.slept)
        if launched is not None:
            launches.append((launched, turn.decided))
            launched = None
        if turn.tokens:
            decisions.append(turn.decided)
            in_flight += 1
            if turn.result is None:
                launched = turn.decided
        if turn.result is not None:
            collected.append(number)
            in_flight -= 1
            unanswered -= answered[number]
    assert not unanswered and not in_flight, "the run has no end"
    assert len(ends) == len(decisions) and len(arrives) == len(requests)
    befores = [decisions[0], *ends[:-1]]
    return Chain(
        starts=tuple(max(times) for times in zip(decisions, befores, strict=True)),
        ends=tuple(ends),
        collected=tuple(collected),
        arrives=tuple(arrives),
        woken=tuple(woken),
        launches=tuple(launches),
    )

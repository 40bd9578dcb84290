"""System prompts and conversations, so that the prefix cache has something to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from sim.workload.content import PromptContent
from sim.workload.workload import whole_number


def shared_prefixes(
    rng: np.random.Generator,
    prompt_tokens: NDArray[np.int64],
    *,
    num_prefixes: int,
    shared_prefix_tokens: int,
) -> PromptContent:
    """Content in which each prompt begins with one of num_prefixes prefixes, equally likely.

    The prefix is the first shared_prefix_tokens tokens of a prompt, part of prompt_tokens and not
    added to it; a shorter prompt is the beginning of its prefix. The rest of every prompt is its
    own. Costs one id a request, whatever the prompts' lengths.
    """
    num_prefixes = whole_number("num_prefixes", num_prefixes)
    unit_tokens = whole_number("shared_prefix_tokens", shared_prefix_tokens)
    n = len(prompt_tokens)
    return PromptContent(
        ids=rng.integers(num_prefixes, size=n),
        offsets=np.arange(n + 1),
        known_tokens=np.minimum(prompt_tokens, unit_tokens).astype(np.int64),
        unit_tokens=unit_tokens,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Conversations:
    """Turns of many conversations, in order of arrival; every array is [n]."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    content: PromptContent
    follows: NDArray[np.int64]  # the turn before, -1 for the first


def turns_of_sessions(
    rng: np.random.Generator, num_turns: int, *, mean: float, geometric: bool
) -> NDArray[np.int64]:
    """Turns of one conversation after the other, num_turns in all; the last may be cut short."""
    sessions = num_turns if geometric else -(-num_turns // int(mean))
    turns = rng.geometric(1 / mean, sessions) if geometric else np.full(sessions, int(mean))
    before = np.cumsum(turns) - turns
    turns = turns[before < num_turns]
    turns[-1] = num_turns - before[len(turns) - 1]
    counts: NDArray[np.int64] = turns.astype(np.int64)
    return counts


def conversations(
    *,
    session_arrival_s: NDArray[np.float64],
    turns: NDArray[np.int64],
    gaps_s: NDArray[np.float64],
    user_tokens: NDArray[np.int64],
    reply_tokens: NDArray[np.int64],
    max_context_tokens: int | None = None,
    prefixes: NDArray[np.int64] | None = None,
    prefix_tokens: int = 0,
) -> Conversations:
    """Put conversations together: a turn's prompt is all that was said before, and the user's part.

    session_arrival_s, turns: [sessions]. gaps_s (from a turn to the next, or from its answer, when
    arrivals are the earliest that can be), user_tokens, reply_tokens: [turns.sum()], session after
    session. A conversation whose next turn would exceed
    max_context_tokens begins anew. prefixes: [sessions], the system prompt each begins with, whose
    prefix_tokens tokens are the first of its first prompt.
    """
    n = len(user_tokens)
    prompt_tokens = np.empty(n, np.int64)
    topic = np.empty(n, np.int64)  # conversations, counted again where one begins anew
    first = np.cumsum(turns) - turns
    said = user_tokens.tolist(), reply_tokens.tolist()
    limit = max_context_tokens or np.inf
    topics = 0
    for start, count in zip(first.tolist(), turns.tolist(), strict=True):
        context = 0
        for turn in range(start, start + count):
            user, reply = said[0][turn], said[1][turn]
            if context + user + reply > limit:
                context = 0
                topics += turn > start
            prompt_tokens[turn] = context + user
            topic[turn] = topics
            context += user + reply
        topics += 1
    waited_s = np.cumsum(gaps_s)
    session = np.repeat(np.arange(len(turns)), turns)
    arrival_s = session_arrival_s[session] + waited_s - waited_s[first][session]
    order = np.argsort(arrival_s, kind="stable")
    known = prompt_tokens + reply_tokens
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    before = np.full(n, -1)
    later = np.arange(n) > first[session]
    before[later] = place[np.flatnonzero(later) - 1]
    return Conversations(
        arrival_s=arrival_s[order],
        prompt_tokens=prompt_tokens[order],
        output_tokens=reply_tokens[order],
        content=_content(
            topic[order],
            known[order],
            None if prefixes is None else prefixes[session][order],
            prefix_tokens,
        ),
        follows=before[order],
    )


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """Conversations laid over requests that are there already; every array is [n], in their order.

    follows: the turn before, -1 for the first. gaps_s: how long after it, or its answer, at least.
    """

    content: PromptContent
    follows: NDArray[np.int64]
    gaps_s: NDArray[np.float64]


def laid_over(
    *,
    arrival_s: NDArray[np.float64],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    turns: NDArray[np.int64],
    gaps_s: NDArray[np.float64],
) -> Laid:
    """Requests dealt out to conversations: one goes on with the conversation whose gap has been
    over for longest when it arrives, else it begins the next one.

    turns: of one conversation after the other. gaps_s: [n], after each request. Lengths stay as
    they are; a prompt repeats what was said before where it is long enough to hold it.
    """
    n = len(arrival_s)
    follows, session = np.full(n, -1), np.empty(n, np.int64)
    waiting: list[tuple[float, int]] = []  # heap: when a conversation may go on, its last request
    left: list[int] = turns.tolist()
    begun = 0
    for row, at_s in enumerate(arrival_s.tolist()):
        if waiting and waiting[0][0] <= at_s:
            before = heappop(waiting)[1]
            follows[row] = before
            session[row] = session[before]
        else:
            session[row] = begun
            begun += 1
        mine = int(session[row])
        left[mine] -= 1
        if left[mine] > 0:
            heappush(waiting, (at_s + float(gaps_s[row]), row))
    topic = topics(session.tolist(), prompt_tokens, output_tokens, np.arange(n))
    known = prompt_tokens + output_tokens
    waited_s = np.where(follows >= 0, gaps_s[follows], 0.0)
    return Laid(_content(np.array(topic), known, None, 0), follows, waited_s)


def _content(
    topic: NDArray[np.int64],
    known_tokens: NDArray[np.int64],
    prefix: NDArray[np.int64] | None,
    prefix_tokens: int,
) -> PromptContent:
    """A token's content is its place in its conversation, so one id stands for all of that."""
    n = len(topic)
    if prefix is None:
        return PromptContent(topic, np.arange(n + 1), known_tokens, int(known_tokens.max()))
    counts = -(-known_tokens // prefix_tokens)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    ids = np.repeat(topic + int(prefix.max()) + 1, counts)
    ids[offsets[:-1]] = prefix
    return PromptContent(ids, offsets, known_tokens, prefix_tokens)


def topics(
    sessions: Sequence[object],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    order: NDArray[np.intp],
) -> list[int]:
    """A number for the conversation that each request goes on with, or begins.

    Taken in `order`, a request goes on with its session's last one if its prompt can hold that
    one's prompt and answer; a session of None is nobody's.
    """
    found = [0] * len(sessions)
    last: dict[object, tuple[int, int]] = {}  # of each session: its topic, and tokens said in it
    begun = 0
    for row in order.tolist():
        name, prompt = sessions[row], int(prompt_tokens[row])
        topic, said = last.get(name, (-1, 0)) if name is not None else (-1, 0)
        if topic < 0 or prompt < said:
            topic, begun = begun, begun + 1
        found[row] = topic
        if name is not None:
            last[name] = topic, prompt + int(output_tokens[row])
    return found

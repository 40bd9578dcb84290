"""Who is next: orders of the waiting queue, and when a request does not get into it or leaves it.

First come first served is a plain deque. Every other order is a queue with the same few methods, so
that a scheduler never knows which one it has. None of them looks at what a real engine could not
know, but `shortest_job` (the true output length, as a perfect predictor would tell) and `fair`,
which counts an answer's length when it begins.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from sim.request import Request

ORDERS = ("fcfs", "priority", "earliest_deadline", "shortest_prompt", "shortest_job", "fair")
# What a client's account is charged for a token (Sheng et al., OSDI 2024, section 4.1).
PROMPT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0

Key = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QueueRules:
    """The order of the queue and its limits.

    priority: of each class of requests, the lower the sooner (as vLLM's).
    deadline_s: of each class, from arrival to first token.
    max_waiting: an arrival that finds so many waiting is refused; None: never.
    max_unfinished: an arrival with which there would be more unfinished sequences is refused.
    max_wait_s: who has waited so long for its first iteration gives up.

    Raises ValueError for an order that is not known.
    """

    order: str = "fcfs"
    priority: Mapping[str, int] = field(default_factory=dict)
    deadline_s: Mapping[str, float] = field(default_factory=dict)
    max_waiting: int | None = None
    max_unfinished: int | None = None
    max_wait_s: float = inf

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}; allowed: {', '.join(ORDERS)}")

    @property
    def overtakes(self) -> bool:
        """Whether an arrival may be next though others wait."""
        return self.order != "fcfs"

    @property
    def limits(self) -> bool:
        """Whether requests can be refused or give up."""
        limits = self.max_waiting, self.max_unfinished
        return limits != (None, None) or self.max_wait_s < inf

    def queue(self) -> WaitingQueue:
        """An empty queue of this order."""
        if self.order == "fcfs":
            return deque()
        return FairQueue() if self.order == "fair" else SortedQueue(self._key())

    def rank(self) -> Callable[[Request], Key] | None:
        """By what the last in order is found among those that run, where that does not change.

        vLLM's victim under `priority` is the request with the largest (priority, arrival).
        """
        if self.order not in ("priority", "earliest_deadline"):
            return None
        key = self._key()
        return lambda one: (*key(one), one.whole.index)

    def _key(self) -> Callable[[Request], Key]:
        priority, deadline_s = self.priority, self.deadline_s
        keys: dict[str, Callable[[Request], Key]] = {
            "priority": lambda one: (priority[one.label], one.arrival_s),
            "earliest_deadline": lambda one: (one.arrival_s + deadline_s[one.label],),
            "shortest_prompt": lambda one: (one.prompt_tokens,),
            "shortest_job": lambda one: (
                one.output_tokens - one.num_generated_tokens,
                one.prompt_tokens,
            ),
        }
        return keys[self.order]


class SortedQueue:
    """Smallest key first, ties in order of the requests' numbers; it has a deque's methods.

    A preempted request takes the place that its key gives it, as vLLM's priority queue does.
    """

    def __init__(self, key: Callable[[Request], Key]) -> None:
        self._key = key
        self._entries: list[tuple[Key, int, int, Request]] = []

    def append(self, request: Request) -> None:
        insort(self._entries, (self._key(request), request.whole.index, request.index, request))

    appendleft = append

    def popleft(self) -> Request:
        return self._entries.pop(0)[-1]

    def remove(self, request: Request) -> None:
        del self._entries[next(i for i, entry in enumerate(self._entries) if entry[-1] is request)]

    def clear(self) -> None:
        self._entries.clear()

    def __getitem__(self, at: int) -> Request:
        return self._entries[at][-1]

    def __iter__(self) -> Iterator[Request]:
        return (entry[-1] for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class FairQueue:
    """The client that has been served least is next: virtual token counters.

    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2, with the
    output's length charged at admission as if it were predicted without error (their VTC (oracle)).
    A client is a class of requests. One that comes back after a pause starts from the least served
    of those waiting: no credit is saved up. Preempted requests come first within their client's,
    and are not charged again.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Request]] = {}
        self._charged: dict[str, float] = {}
        self._last = ""  # the client that left the queue last
        self._count = 0
        self._paid: set[Request] = set()

    def append(self, request: Request) -> None:
        client = request.label
        queue = self._waiting.get(client)
        if queue is None:
            others = [self._charged[name] for name in self._waiting]
            least = min(others) if others else self._charged.get(self._last, 0.0)
            self._charged[client] = max(self._charged.get(client, 0.0), least)
            queue = self._waiting[client] = deque()
        queue.append(request)
        self._count += 1

    def appendleft(self, request: Request) -> None:
        self._charged.setdefault(request.label, 0.0)
        self._waiting.setdefault(request.label, deque()).appendleft(request)
        self._paid.add(request)
        self._count += 1

    def popleft(self) -> Request:
        client = self._next()
        request = self._waiting[client].popleft()
        self._leave(client)
        if request in self._paid:
            self._paid.remove(request)
        else:
            output = OUTPUT_TOKEN * request.output_tokens
            self._charged[client] += PROMPT_TOKEN * request.prompt_tokens + output
        return request

    def remove(self, request: Request) -> None:
        self._waiting[request.label].remove(request)
        self._paid.discard(request)
        self._leave(request.label)

    def clear(self) -> None:
        self._waiting.clear()
        self._paid.clear()
        self._count = 0

    def __getitem__(self, at: int) -> Request:
        if at:
            raise IndexError("a fair queue knows who is next, not who comes after")
        return self._waiting[self._next()][0]

    def __iter__(self) -> Iterator[Request]:
        return (request for queue in self._waiting.values() for request in queue)

    def __len__(self) -> int:
        return self._count

    def _next(self) -> str:
        """The least served client; of equal ones, whose first request came first."""
        return min(
            self._waiting, key=lambda name: (self._charged[name], self._waiting[name][0].index)
        )

    def _leave(self, client: str) -> None:
        self._count -= 1
        if not self._waiting[client]:
            del self._waiting[client]
            self._last = client


WaitingQueue = deque[Request] | SortedQueue | FairQueue

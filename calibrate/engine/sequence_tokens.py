"""Token ids of the sequences that are served: what went in, what was sampled, what is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.request import Request


class SequenceTokens:
    """Tokens by sequence: a request's own, or those of each of its samples once it has split.

    A sequence has one list, of what went in or will: its prompt, and what was sampled. Only where
    the answer is known beforehand do the two differ, and what was sampled has a list of its own.
    """

    def __init__(self) -> None:
        self._tokens: dict[Request, list[int]] = {}
        self._prompts: dict[Request, np.ndarray] = {}
        self._sampled: dict[Request, list[int]] = {}  # of those whose answers are in the trace
        self._known: dict[Request, list[int]] = {}
        self._sequences: dict[Request, list[Request]] = {}  # samples of a request that has split
        self._lists: list[list[int]] = []  # of those who emitted last, in order
        self._emitting: Sequence[Request] | None = None
        self._pending: list[list[int]] = []  # what goes into those lists, iteration by iteration

    def add(self, request: Request, prompt: np.ndarray, answer: np.ndarray) -> None:
        """Take in a request: its prompt, and its answer as far as it is known."""
        self._tokens[request] = prompt.tolist()
        self._prompts[request] = prompt
        if len(answer):
            self._known[request] = answer.tolist()
            self._sampled[request] = []

    def drop(self, request: Request) -> list[list[int]]:
        """Forget a request; returns the tokens that each of its sequences generated."""
        self._hand_out()
        sequences = self._sequences.pop(request, [request])
        answers = [self._answer(one)[: one.num_generated_tokens] for one in sequences]
        if request.group is not None and not any(one.parent for one in sequences):
            # Samples of a single token end as they begin, and never decode.
            seen = len(sequences) if sequences != [request] else 0
            answers = answers[:seen] + [[token] for token in self._answer(request)[seen:]]
        for one in {request, *sequences}:
            self._tokens.pop(one, None)
            self._prompts.pop(one, None)
            self._sampled.pop(one, None)
            self._known.pop(one, None)
        self._emitting = None
        return answers

    def _answer(self, sequence: Request) -> list[int]:
        """What was sampled of a sequence."""
        own = self._sampled.get(sequence)
        return self._tokens[sequence][sequence.prompt_tokens :] if own is None else own

    def of(self, sequence: Request) -> list[int]:
        """A sequence's tokens; a new sample has its prompt's, and the first of its own where the
        prompt was computed for all."""
        self._hand_out()
        tokens = self._tokens.get(sequence)
        if tokens is not None:
            return tokens
        request = sequence.whole if sequence.group is None else sequence.group.request
        siblings = self._sequences.setdefault(request, [])
        first = [] if sequence.group is None else [self._answer(request)[len(siblings)]]
        siblings.append(sequence)
        self._tokens[sequence] = self._tokens[request][: request.prompt_tokens] + first
        return self._tokens[sequence]

    def between(self, sequence: Request, start: int, stop: int) -> np.ndarray | list[int]:
        """Its tokens from `start` on, up to `stop` or as far as there are any."""
        prompt = self._prompts.get(sequence)
        if prompt is not None and stop <= len(prompt):
            return prompt[start:stop]
        return self.of(sequence)[start:stop]

    def sequences_of(self, request: Request) -> list[Request]:
        """A request's samples where it has split, itself otherwise."""
        return self._sequences.get(request, [request])

    def known_next(self, sequence: Request, most: int) -> list[int]:
        """The tokens that come next of a sequence whatever is sampled, as far as they are known."""
        known = self._known.get(sequence)
        if known is None:
            return []
        first = len(self._sampled[sequence])
        return known[first : first + most]

    def extend(self, sequence: Request, sampled: list[int], fed: list[int]) -> None:
        """Hand a sequence several tokens of its answer, and what goes in for each."""
        self._hand_out()
        if sequence in self._sampled:
            self._sampled[sequence] += sampled
        self._tokens[sequence] += fed[: len(sampled)]

    def note(self, emitting: Sequence[Request], sampled: list[int]) -> list[int]:
        """Hand every emitting sequence its token: first the decodes, then prompts that ended.

        Returns the tokens that go in next: the sampled ones, unless the trace knows better. The
        same `emitting` again, not a copy, is handed its tokens without a look at who it is.
        """
        if self._emitting is not emitting:
            self._hand_out()
            # Of a row that was dropped from a request-level batch nobody asks for the tokens.
            self._lists = [self._tokens.get(one, []) for one in emitting]
            self._emitting = emitting
        fed = self._known_instead(emitting, sampled) if self._known else sampled
        self._pending.append(fed)
        return fed

    def _hand_out(self) -> None:
        """Put what has come into each sequence's list: several iterations' tokens at once."""
        if self._pending:
            columns = zip(*self._pending, strict=True)
            for tokens, come in zip(self._lists, columns, strict=True):
                tokens += come
            self._pending = []

    def _known_instead(self, emitting: Sequence[Request], sampled: list[int]) -> list[int]:
        fed = list(sampled)
        for place, (request, token) in enumerate(zip(emitting, sampled, strict=True)):
            known = self._known.get(request)
            if known is not None:
                answer = self._sampled[request]
                if len(answer) < len(known):
                    fed[place] = known[len(answer)]
                answer.append(token)
        return fed

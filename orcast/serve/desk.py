"""The front desk: a request's body becomes prompts for the cluster, with answers of set lengths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from orcast.serve.answers import Answer, Choice, Format, Prompt
from orcast.serve.bodies import ChatBody, CompletionBody, Generation
from orcast.serve.errors import no_room_for_output, refused, too_long, unknown_model
from orcast.serve.live_engine import LiveEngine
from orcast.serve.texts import Filler, Ids, Tokens, chat_ids
from sim.workload.content import PromptContent

_PLACES = 1 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What one HTTP request asks for."""

    answer: Answer
    format: Format
    stream: bool
    max_tokens: list[int]  # of each prompt
    hashes: list[Sequence[int]]
    label: str


class Desk:
    """Knows the model's name, limits and tokens; draws how long answers will be."""

    def __init__(
        self, engine: LiveEngine, tokens: Tokens, *, names: Sequence[str], seed: int
    ) -> None:
        """`names` of the model; the first is the one it calls itself."""
        deployment = engine.options.deployment
        groups = deployment.groups
        self.engine, self.tokens, self.names = engine, tokens, names
        self.max_model_len = min(
            min(group.config.max_model_len, group.num_blocks * group.config.block_size)
            for group in groups
        )
        self._filler = Filler(tokens)
        self._lengths = deployment.workload.output_tokens  # what the scenario drew
        self._rng = np.random.default_rng([seed, 0x73727665])
        self._block_size = groups[0].config.block_size
        self._caching = any(group.config.enable_prefix_caching for group in groups)
        labels = deployment.workload.labels
        self._labels = sorted(set(labels)) if labels else []

    def check_model(self, name: str | None) -> None:
        """ApiError for a model that is not served; none given is the one that is."""
        if name and name not in self.names:
            raise unknown_model(name, ", ".join(self.names))

    def completion(self, body: CompletionBody) -> Asked:
        """Of ``/v1/completions``. Raises ApiError."""
        self.check_model(body.model)
        prompts, echo = [], []
        for prompt in body.prompts:
            text = prompt if isinstance(prompt, str) else ""
            ids = self.tokens.ids(prompt) if isinstance(prompt, str) else np.array(prompt, np.int64)
            prompts.append(ids)
            echo += [text] * (body.n or 1)
        if body.echo and body.logprobs is not None:
            raise refused("`echo` with `logprobs` is not served by this endpoint.", param="echo")
        return self._asked(
            body, prompts, kind="text", logprobs=body.logprobs, echo=echo if body.echo else ()
        )

    def chat(self, body: ChatBody) -> Asked:
        """Of ``/v1/chat/completions``. Raises ApiError."""
        self.check_model(body.model)
        ids = chat_ids(self.tokens, [(one.role, one.text) for one in body.messages])
        if body.max_completion_tokens is not None:
            body.max_tokens = body.max_completion_tokens
        logprobs = None if not body.logprobs else max(body.top_logprobs or 0, 0)
        return self._asked(body, [ids], kind="chat", logprobs=logprobs)

    def _asked(
        self, body: Generation, prompts: Sequence[Ids], *, kind: str, logprobs: int | None,
        echo: Sequence[str] = (),
    ) -> Asked:  # fmt: skip
        body.check()
        count = body.n or 1
        answer, limits, hashes = Answer(), [], []
        if count > 1 and not self.engine.source.samples:
            raise refused("n must be 1: this scenario's scheduler serves one answer a prompt.")
        for ids in prompts:
            ids = self._truncated(ids, body.truncate_prompt_tokens)
            limit = self._limit(body, len(ids))
            prompt = Prompt(len(ids), [])
            for _ in range(count):
                number = len(prompt.choices) + sum(len(one.choices) for one in answer.prompts)
                prompt.choices.append(self._choice(body, answer, number, limit))
            self.engine.check(prompt.tokens, [one.tokens for one in prompt.choices], limit)
            answer.prompts.append(prompt)
            limits.append(limit)
            hashes.append(self._hashes(ids, prompt.choices[0]))
        options = body.stream_options
        name = body.request_id or uuid4().hex
        made = Format(
            kind,
            name=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{name}",
            model=body.model or self.names[0],
            created=int(time.time()),
            filler=self._filler,
            logprobs=logprobs,
            usage=bool(options and options.include_usage),
            continuous=bool(options and options.include_usage and options.continuous_usage_stats),
            hold=max(map(len, body.stop), default=1) - 1,
            echo=echo,
        )
        return Asked(answer, made, bool(body.stream), limits, hashes, self._label(body.user))

    def _truncated(self, ids: Ids, most: int | None) -> Ids:
        if most is None:
            return ids
        return ids[len(ids) - min(len(ids), self.max_model_len - 1 if most == -1 else most) :]

    def _limit(self, body: Generation, prompt_tokens: int) -> int:
        """The most tokens that an answer may have."""
        longest = self.max_model_len
        if prompt_tokens < 1:
            raise refused("The decoder prompt cannot be empty")
        if body.max_tokens is not None and body.max_tokens > longest:
            name = "max_completion_tokens" if isinstance(body, ChatBody) else "max_tokens"
            raise refused(
                f"{name}={body.max_tokens} cannot be greater than max_model_len={longest}. "
                "Please request fewer output tokens.",
                param=name,
                value=body.max_tokens,
            )
        if prompt_tokens > longest:
            raise too_long(longest, prompt_tokens)
        if prompt_tokens == longest:
            raise no_room_for_output(longest, prompt_tokens)
        room = longest - prompt_tokens
        limit = room if body.max_tokens is None else min(body.max_tokens, room)
        body.check_limit(limit)
        return limit

    def _choice(self, body: Generation, answer: Answer, number: int, limit: int) -> Choice:
        """An answer as long as the request says, or as one of the scenario's is."""
        if body.ignore_eos:
            tokens = limit
        else:
            drawn = int(self._lengths[self._rng.integers(len(self._lengths))])
            tokens = min(max(drawn, body.min_tokens), limit)
        place = int(self._rng.integers(_PLACES))
        choice = Choice(number, place, tokens, "length" if tokens == limit else "stop", answer)
        if body.stop:
            self._stop(choice, body)
        return choice

    def _stop(self, choice: Choice, body: Generation) -> None:
        """End an answer with the first stop string that its filler happens to have."""
        words = self._filler.words(choice.place, 0, choice.tokens)
        choice.text = text = "".join(words)
        least = len("".join(words[: body.min_tokens]))
        found = [(at, one) for one in body.stop if (at := text.find(one, least)) >= 0]
        if not found:
            return
        at, stop = min(found)
        end = at + len(stop)
        length = 0
        for count, word in enumerate(words, 1):
            length += len(word)
            if length >= end:
                choice.tokens = count
                break
        choice.text = text[: end if body.include_stop_str_in_output else at]
        choice.finish_reason, choice.stop = "stop", stop

    def _hashes(self, ids: Ids, first: Choice) -> Sequence[int]:
        """Of the prompt's full blocks, and of those that the answer fills, which others repeat."""
        if not self._caching:
            return ()
        both = np.concatenate([ids, self._filler.ids(first.place, first.tokens)])
        count = len(both)
        content = PromptContent(both, np.array([0, count]), np.array([count]))
        return content.block_hashes(0, self._block_size, count)

    def _label(self, user: str | None) -> str:
        """The class of a request: its user, where the scenario has a class of that name."""
        if not self._labels:
            return ""
        return user if user in self._labels else self._labels[0]

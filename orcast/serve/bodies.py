"""Bodies of requests, as far as they matter here; vLLM's other fields are accepted and ignored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from orcast.serve.errors import ApiError, Refusal, invalid, refused

MOST_CHOICES = 16_384  # vLLM's VLLM_MAX_N_SEQUENCES
MOST_PROMPTS = 2_048
_INTEGER = (-(2**63), 2**63 - 1)

Token = Annotated[int, Field(ge=0, le=2**63 - 1)]
Stop = Annotated[
    list[str],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else (given or [])),
]


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Generation(BaseModel):
    """What both ways to ask have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Stop = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    seed: int | None = Field(None, ge=_INTEGER[0], le=_INTEGER[1])
    user: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    use_beam_search: bool = False
    request_id: str | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)

    @model_validator(mode="before")
    @classmethod
    def _stream_options_need_a_stream(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("stream_options") and not given.get("stream"):
            raise Refusal(
                "Stream options can only be defined when `stream=True`.", "stream_options"
            )
        return given

    def check(self) -> None:
        """ApiError for values outside what sampling allows."""
        if (count := self.n or 1) < 1 or count > MOST_CHOICES:
            bound = f"at least 1, got {count}." if count < 1 else (
                f"at most {MOST_CHOICES}, got {count}. To increase this limit, set the "
                "VLLM_MAX_N_SEQUENCES environment variable."
            )  # fmt: skip
            raise refused(f"n must be {bound}")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if value is not None and not -2.0 <= value <= 2.0:
                raise refused(f"{name} must be in [-2, 2], got {value}.")
        heat = self.temperature
        if heat is not None and not 0.0 <= heat <= 2.0:
            word = "be non-negative" if heat < 0 else "be in [0, 2]"
            raise refused(f"temperature must {word}, got {heat}.", param="temperature", value=heat)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise refused(
                f"top_p must be in (0, 1], got {self.top_p}.", param="top_p", value=self.top_p
            )
        if self.top_k is not None and self.top_k < -1:
            raise refused(f"top_k must be 0 (disable), or at least 1, got {self.top_k}.")
        if self.min_tokens < 0:
            raise refused(f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        if any(not one for one in self.stop):
            raise refused("stop cannot contain an empty string.")
        if self.use_beam_search:
            raise refused("beam search is not served by this endpoint.", param="use_beam_search")

    def check_limit(self, limit: int) -> None:
        """ApiError where no answer can have so many tokens at most."""
        if limit < 1:
            raise refused(
                f"max_tokens must be at least 1, got {limit}.", param="max_tokens", value=limit
            )
        if self.min_tokens > limit:
            raise refused(
                f"min_tokens must be less than or equal to max_tokens={limit}, got "
                f"{self.min_tokens}."
            )


class CompletionBody(Generation):
    """Of ``/v1/completions``."""

    prompt: list[Token] | list[list[Token]] | str | list[str] | None = None
    max_tokens: int | None = 16
    echo: bool | None = False
    logprobs: int | None = None
    prompt_embeds: Any = None
    suffix: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_prompt(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        prompt = given.get("prompt")
        if prompt in (None, "", []):
            raise Refusal(
                "Either prompt or prompt_embeds must be provided and non-empty.", "prompt"
            )
        many = isinstance(prompt, list) and not isinstance(prompt[0], int)
        if many and len(prompt) > MOST_PROMPTS:
            raise Refusal(
                f"prompt list length {len(prompt)} exceeds the maximum allowed count of "
                f"{MOST_PROMPTS}. To increase this limit, set the VLLM_MAX_COMPLETION_PROMPTS "
                "environment variable.",
                "prompt",
            )
        logprobs = given.get("logprobs")
        if logprobs is not None and not isinstance(logprobs, int | float):
            raise Refusal("`logprobs` must be an integer.", "logprobs", logprobs)
        if logprobs is not None and logprobs < 0 and logprobs != -1:
            raise Refusal("`logprobs` must be a positive value or -1.", "logprobs", logprobs)
        return given

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several."""
        prompt = self.prompt
        assert prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[return-value,list-item]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """All that is text in it."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""


class ChatBody(Generation):
    """Of ``/v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0

    @model_validator(mode="before")
    @classmethod
    def _logprobs_fit(cls, given: Any) -> Any:
        top = given.get("top_logprobs") if isinstance(given, dict) else None
        if isinstance(top, int):
            if top < 0 and top != -1:
                raise Refusal("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
            if top and not given.get("logprobs"):
                raise Refusal(
                    "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"
                )
        return given


class TokenizeBody(BaseModel):
    """Of ``/tokenize``: a prompt or a chat."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is expected")
        return self


Body = TypeVar("Body", bound=BaseModel)


def parsed(kind: type[Body], content_type: str, data: bytes) -> Body:
    """A request's body. Raises ApiError, as vLLM answers, for one that is none."""
    if content_type.split(";", 1)[0].strip().lower() != "application/json":
        raise invalid(["Unsupported Media Type: Only 'application/json' is allowed"])
    try:
        given = json.loads(data)
    except json.JSONDecodeError as error:
        raise invalid([_not_json(error.msg, error.pos)]) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise ApiError("There was an error parsing the body", kind="Bad Request") from None
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise invalid([{**one, "loc": ("body", *one["loc"])} for one in found]) from None


def _not_json(message: str, position: int) -> dict[str, Any]:
    return {
        "type": "json_invalid", "loc": ("body", position), "msg": "JSON decode error",
        "input": {}, "ctx": {"error": message},
    }  # fmt: skip

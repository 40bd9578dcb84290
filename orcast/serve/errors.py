"""What is refused, in vLLM's words and with its codes (read in vLLM 0.32.0)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

_MOST_REPORTED, _MOST_INPUT, _MOST_ERROR = 10, 200, 1000  # of validation errors


class ApiError(Exception):
    """A request that gets an error for its answer."""

    def __init__(
        self, message: str, *, kind: str = "BadRequestError", status: int = 400,
        param: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.kind, self.status, self.param = kind, status, param

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        error = {
            "message": str(self), "type": self.kind, "param": self.param, "code": self.status,
        }  # fmt: skip
        return {"error": error}

    @property
    def response(self) -> JSONResponse:
        """As HTTP."""
        return JSONResponse(self.body, status_code=self.status)


def refused(message: str, *, param: str | None = None, value: object = None) -> ApiError:
    """A value that cannot be; vLLM names the parameter and the value behind the message."""
    extras = [f"parameter={param}"] if param is not None else []
    extras += [f"value={value}"] if value is not None else []
    return ApiError(f"{message} ({', '.join(extras)})" if extras else message, param=param)


def phrased(status: int, message: str) -> ApiError:
    """An error called by its status."""
    return ApiError(message, kind=HTTPStatus(status).phrase, status=status)


def unknown_model(name: str, served: str) -> ApiError:
    return ApiError(
        f"The model `{name}` does not exist. Valid aliases: {served}.",
        kind="NotFoundError", status=404, param="model",
    )  # fmt: skip


def queue_is_full(*, by_sequences: bool) -> ApiError:
    """Beyond max_num_queued_reqs, which vLLM has, or max_num_waiting, which it has not."""
    if by_sequences:
        return phrased(
            503,
            "The engine is currently busy and cannot accept new requests. "
            "Please try again later or on a different instance.",
        )
    return phrased(429, "Too many requests are waiting. Please try again later.")


def waited_too_long(limit_s: float) -> ApiError:
    return phrased(503, f"The request has waited for {limit_s:g} s without being served.")


def too_long(limit: int, count: int) -> ApiError:
    return refused(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains "
        f"{count} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
        param="input_tokens",
        value=count,
    )


def no_room_for_output(limit: int, count: int) -> ApiError:
    return refused(
        f"The decoder prompt (length {count}) plus the number of requested output tokens (at "
        f"least 1) is longer than the maximum model length of {limit}. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens (prompt + requested output "
        "tokens)."
    )


def invalid(errors: Sequence[Any]) -> ApiError:
    """Validation errors as pydantic lists them; a text stands for itself."""
    first = errors[0]
    param = None
    if isinstance(first, dict):
        cause = first.get("ctx", {}).get("error")
        param = cause.param if isinstance(cause, Refusal) else _place(first["loc"])
    label = "error" if len(errors) == 1 else "errors"
    message = f"{len(errors)} validation {label}:\n"
    message += "".join(f"  {_shown(error)}\n" for error in errors[:_MOST_REPORTED])
    if len(errors) > _MOST_REPORTED:
        message += f"  ...and {len(errors) - _MOST_REPORTED} more {label}\n"
    return ApiError(message.rstrip(), kind="Bad Request", param=param)


class Refusal(ValueError):
    """Raised while a body is validated: what vLLM's own validators refuse."""

    def __init__(self, message: str, param: str, value: object = None) -> None:
        super().__init__(str(refused(message, param=param, value=value)))
        self.param = param


def _place(loc: Sequence[Any]) -> str:
    """Where in the body, without the names of the branches that a type has."""
    inner = {"str", "int", "float", "bool", "list", "dict", "none", "constrained-int"}
    parts = [str(part) for part in loc]
    named = [one for one in parts if one.lower() not in inner and not set(one) & set("[]{}()")]
    return ".".join(named or parts)


def _shown(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    shown = {key: value for key, value in error.items() if key != "url"}
    shown["loc"] = _place(error["loc"])
    given = error.get("input")
    if isinstance(given, dict | list):
        shown["input"] = f"<{type(given).__name__} of {len(given)} items>"
    elif given is not None and len(text := str(given)) > _MOST_INPUT:
        shown["input"] = text[:_MOST_INPUT] + "...[truncated]"
    text = str(shown)
    return text if len(text) <= _MOST_ERROR else text[:_MOST_ERROR] + "...[truncated]"

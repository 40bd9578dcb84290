"""The formats of recorded requests: how each is recognised, and where it keeps what.

A format is a row of FORMATS, whatever the file it comes in: a CSV table, a JSON object a line, a
JSON array of them, or one JSON object that holds the requests somewhere inside. A field is a key,
or a path such as `info.timings.request_start`; where versions of a tool differ there are several,
of which the first that a request has is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["s", "ms", "us", "ns", "date"]
Keys = tuple[str, ...]

PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True, slots=True)
class Time:
    """Where a time is kept, and in what unit."""

    keys: Keys
    unit: Unit


@dataclass(frozen=True, slots=True)
class Latencies:
    """What a format says of each request's answer: its first token, and its end.

    Either as spans from the sending (`ttft`, `e2e`) or as times on the arrival's clock (`end`,
    and `token_times`, of all tokens).
    """

    ttft: Time | None = None
    e2e: Time | None = None
    end: Time | None = None
    token_times: Time | None = None


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One way to write requests down.

    known_by: the file is of this format when its first request has all keys of one of these sets.
    rows: where in one JSON object the lists of requests lie, `*` for each of a list.
    whole_units: times are whole numbers of the unit; others are doubted, not believed.
    session, delay: turns of a conversation, and how long after the answer before each comes.
    ids, unit_tokens: what prompts hold, an id for so many tokens where the file does not tell.
    failed: what is there, and true, of a request that failed.
    left_out: a key and the value it has in requests that do not count.
    streams: the rows hold an answer chunk by chunk (`trace_streams.py`).
    spans: the rows are spans of OpenTelemetry's, wherever they lie (`trace_spans.py`).
    """

    name: str
    known_by: tuple[Keys, ...]
    arrival: Time | None = None
    prompt: Keys = ()
    output: Keys = ()
    rows: Keys | None = None
    whole_units: bool = False
    session: str | None = None
    delay: Time | None = None
    request_id: Keys = ()
    ids: str | None = None
    output_ids: str | None = None
    unit_tokens: int = 1
    failed: Keys = ()
    left_out: tuple[str, str] | None = None
    spans: bool = False
    streams: bool = False
    latencies: Latencies | None = None
    by_client: bool = True  # times are what a client saw


TABLE = TraceFormat("table", ())

# The first that fits is taken: what is more particular comes first.
FORMATS: dict[str, TraceFormat] = {
    one.name: one
    for one in (
        # What `orcast serve --record` writes down (sim/workload/trace_served.py)
        TraceFormat(
            "orcast",
            (("arrival_s", "prompt_tokens", "output_tokens", "max_tokens"),),
            Time(("arrival_s",), "s"),
            ("prompt_tokens",),
            ("output_tokens",),
        ),
        # Azure LLM inference traces (Patel et al., Splitwise, ISCA'24; and their 2024 successors)
        TraceFormat(
            "azure",
            (("TIMESTAMP", "ContextTokens", "GeneratedTokens"),),
            Time(("TIMESTAMP",), "date"),
            ("ContextTokens",),
            ("GeneratedTokens",),
        ),
        # BurstGPT (Wang et al., KDD'25), either version; failed requests have 0 response tokens
        TraceFormat(
            "burstgpt",
            (("Timestamp", "Request tokens", "Response tokens"),),
            Time(("Timestamp",), "s"),
            ("Request tokens",),
            ("Response tokens",),
        ),
        # Alibaba Cloud Model Studio's traces (Wang et al., ATC'25)
        TraceFormat(
            "bailian",
            (("chat_id", "parent_chat_id", "timestamp", "input_length"),),
            Time(("timestamp",), "s"),
            ("input_length",),
            ("output_length",),
            ids="hash_ids",
            unit_tokens=16,
        ),
        # Mooncake (Qin et al., FAST'25), and the sessions that AIPerf and Dynamo add to it
        TraceFormat(
            "mooncake",
            (("timestamp", "input_length"), ("session_id", "input_length")),
            Time(("timestamp",), "ms"),
            ("input_length",),
            ("output_length",),
            whole_units=True,
            session="session_id",
            delay=Time(("delay",), "ms"),
            ids="hash_ids",
            unit_tokens=512,
        ),
        # LLMServingSim's requests, whose token ids are known
        TraceFormat(
            "sharegpt",
            (("arrival_time_ns", "input_toks"),),
            Time(("arrival_time_ns",), "ns"),
            ("input_toks",),
            ("output_toks",),
            ids="input_tok_ids",
            output_ids="output_tok_ids",
        ),
        # What a vLLM engine recorded: a request arrives when the engine's core took it in, from
        # when on its scheduler can know of it
        TraceFormat(
            "vllm-requests",
            (("queued_ts", "input_toks"),),
            Time(("queued_ts",), "s"),
            ("input_toks",),
            ("output_toks",),
            request_id=("request_id",),
        ),
        # Aggregates of AIPerf's and genai-perf's JSON export
        TraceFormat(
            "aggregates",
            (
                (
                    "request_throughput.avg",
                    "input_sequence_length.avg",
                    "output_sequence_length.avg",
                ),
                ("load_summary", "successes"),
            ),
        ),
        # `vllm bench serve` and `sglang.bench_serving`: lists side by side, or figures of the whole
        TraceFormat("vllm-bench", (("input_lens",), ("request_throughput",), ("ttfts",))),
        # AIPerf's profile_export.jsonl
        TraceFormat(
            "aiperf",
            (("metadata.request_start_ns", "metrics"),),
            Time(("metadata.request_start_ns",), "ns"),
            ("metrics.input_sequence_length.value", "metrics.input_token_count.value"),
            ("metrics.output_sequence_length.value", "metrics.output_token_count.value"),
            request_id=("metadata.x_request_id",),
            failed=("error", "metadata.was_cancelled"),
            left_out=("metadata.benchmark_phase", "warmup"),
            latencies=Latencies(
                ttft=Time(("metrics.time_to_first_token.value",), "ms"),
                e2e=Time(("metrics.request_latency.value",), "ms"),
            ),
        ),
        # GuideLLM's benchmarks.json
        TraceFormat(
            "guidellm",
            (("benchmarks",),),
            Time(
                (
                    "info.timings.request_start",
                    "scheduler_info.request_timings.request_start",
                    "request_start_time",
                    "start_time",
                ),
                "s",
            ),
            ("prompt_tokens", "input_metrics.total_tokens", "input_metrics.text_tokens"),
            ("output_tokens", "output_metrics.total_tokens", "output_metrics.text_tokens"),
            rows=("benchmarks", "*", "requests", "successful"),
            request_id=("request_id",),
            latencies=Latencies(
                ttft=Time(("time_to_first_token_ms",), "ms"),
                e2e=Time(("request_latency",), "s"),
                end=Time(("info.timings.request_end", "request_end_time", "end_time"), "s"),
            ),
        ),
        # genai-perf's (Perf Analyzer's) profile_export.json
        TraceFormat(
            "genai-perf",
            (("experiments",),),
            Time(("timestamp",), "ns"),
            ("prompt_tokens",),
            ("output_tokens",),
            rows=("experiments", "*", "requests"),
            failed=("failed",),
            streams=True,
            latencies=Latencies(ttft=Time(("ttft_ns",), "ns"), e2e=Time(("e2e_ns",), "ns")),
        ),
        # inference-perf's per_request_lifecycle_metrics.json
        TraceFormat(
            "inference-perf",
            (
                ("start_time", "info.input_tokens"),
                ("start_time", "info.request_metrics.text.input_tokens"),
                ("start_time", "computed_metrics.input_tokens"),
            ),
            Time(("start_time",), "s"),
            (
                "info.input_tokens",
                "info.request_metrics.text.input_tokens",
                "computed_metrics.input_tokens",
            ),
            (
                "info.output_tokens",
                "info.response_metrics.output_tokens",
                "computed_metrics.output_tokens",
            ),
            failed=("error",),
            latencies=Latencies(
                ttft=Time(("computed_metrics.time_to_first_token",), "s"),
                end=Time(("end_time",), "s"),
                token_times=Time(
                    ("info.output_token_times", "info.response_metrics.output_token_times"), "s"
                ),
            ),
        ),
        # OpenTelemetry's spans: OTLP's JSON, a tracing store's (Tempo, Jaeger, Zipkin), or an
        # SDK's console's. Attributes by the GenAI conventions and their predecessors, by vLLM's
        # own, and by OpenInference's; `trace_spans.py` gives the rest its names
        TraceFormat(
            "opentelemetry",
            (
                ("resourceSpans",),
                ("batches.0.scopeSpans",),
                ("data.0.spans",),
                ("traceId", "spanId"),
                ("traceId", "id", "timestamp", "duration"),
                ("context.trace_id", "attributes"),
                ("trace_id", "span_id", "attributes"),
                ("start_time", "end_time", "attributes"),
            ),
            Time(("start_ns",), "ns"),
            (
                "gen_ai.usage.input_tokens",
                "gen_ai.usage.prompt_tokens",
                "llm.usage.prompt_tokens",
                "llm.token_count.prompt",
            ),
            (
                "gen_ai.usage.output_tokens",
                "gen_ai.usage.completion_tokens",
                "llm.usage.completion_tokens",
                "llm.token_count.completion",
            ),
            session="gen_ai.conversation.id",
            request_id=("gen_ai.request.id", "span_id"),
            failed=("failed",),
            left_out=("span", "of no request to a model with token counts of its own"),
            spans=True,
            latencies=Latencies(
                ttft=Time(
                    (
                        "gen_ai.latency.time_to_first_token",
                        "gen_ai.response.time_to_first_chunk",
                        "gen_ai.server.time_to_first_token",
                        "first_token_s",
                    ),
                    "s",
                ),
                e2e=Time(("gen_ai.latency.e2e", "e2e_s"), "s"),
            ),
        ),
        # Prometheus' answer to a range query of an engine's metrics
        TraceFormat(
            "prometheus",
            (("data.resultType", "status"), ("0.data.resultType",), ("metric", "values")),
        ),
        # Vidur (Agrawal et al., MLSys'24)
        TraceFormat(
            "vidur",
            (("arrived_at", "num_prefill_tokens", "num_decode_tokens"),),
            Time(("arrived_at",), "s"),
            ("num_prefill_tokens",),
            ("num_decode_tokens",),
        ),
        # splitwise-sim's traces (Patel et al., ISCA'24)
        TraceFormat(
            "splitwise",
            (("arrival_timestamp", "prompt_size", "token_size"),),
            Time(("arrival_timestamp",), "s"),
            ("prompt_size",),
            ("token_size",),
        ),
        # Conversations in text, as data sets of chats have them
        TraceFormat(
            "conversations",
            (("conversations",), ("conversation",), ("messages",)),
            Time(("timestamp", "tstamp", "created_at"), "date"),
        ),
        TABLE,
    )
}

_ARRIVALS = {
    "arrival", "arrival_time", "arrived_at", "arrived", "arrival_timestamp", "timestamp", "time",
    "ts", "t", "start", "start_time", "request_time", "request_timestamp", "request_start",
    "created", "created_at", "datetime", "date", "received_at", "sent_at", "when",
}  # fmt: skip
_PROMPTS = {
    "prompt", "prompt_tokens", "input_tokens", "prompt_length", "prompt_len", "input_length",
    "input_len", "input_toks", "input", "context_tokens", "request_tokens", "prompt_size", "isl",
    "num_prompt_tokens", "num_input_tokens", "num_prefill_tokens", "n_prompt_tokens", "tokens_in",
    "input_sequence_length", "prompt_token_count", "input_token_count", "prefill_tokens",
    "gen_ai_usage_input_tokens", "gen_ai_usage_prompt_tokens", "usage_prompt_tokens",
}  # fmt: skip
_OUTPUTS = {
    "output", "output_tokens", "completion_tokens", "generated_tokens", "response_tokens",
    "output_length", "output_len", "output_toks", "completion", "decode_tokens", "token_size",
    "num_output_tokens", "num_decode_tokens", "num_generated_tokens", "n_output_tokens", "osl",
    "tokens_out", "output_sequence_length", "completion_token_count", "output_token_count",
    "gen_ai_usage_output_tokens", "gen_ai_usage_completion_tokens", "usage_completion_tokens",
    "generation_tokens", "completion_len", "response_length", "completion_length",
}  # fmt: skip
_SESSIONS = {"session", "session_id", "conversation_id", "conversation", "chat_id", "thread_id"}
_SUFFIX = re.compile(r"_(s|sec|secs|seconds|ms|msec|millis|milliseconds|us|micros|microseconds|ns|"
                     r"nanos|nanoseconds)$")  # fmt: skip
_UNITS: dict[str, Unit] = {"s": "s", "ms": "ms", "mi": "ms", "us": "us", "ns": "ns", "na": "ns"}


@dataclass(frozen=True, slots=True)
class Columns:
    """What the user says of a table: names of its columns, and the unit of its times."""

    arrival: str | None = None
    prompt: str | None = None
    output: str | None = None
    session: str | None = None
    unit: Unit | None = None

    def of(self, format: TraceFormat) -> TraceFormat:
        """A format with what is said here in place of what it says."""
        arrival = format.arrival
        if self.arrival is not None:
            known = plain_unit(self.arrival) or "date"
            arrival = Time((self.arrival,), known)
        if self.unit is not None and arrival is not None:
            arrival = replace(arrival, unit=self.unit)
        return replace(
            format,
            arrival=arrival,
            prompt=(self.prompt,) if self.prompt else format.prompt,
            output=(self.output,) if self.output else format.output,
            session=self.session or format.session,
            whole_units=format.whole_units and self.unit is None,
        )


def plain_unit(name: str) -> Unit | None:
    """The unit that a column's name ends with, as in `arrival_ms`; None where it does not."""
    found = _SUFFIX.search(_plain(name))
    if found is None:
        return None
    suffix = found[1]
    if suffix.startswith("micro"):
        return "us"
    return _UNITS.get(suffix, _UNITS.get(suffix[:2], "s"))


def guessed_columns(names: Iterable[str]) -> Columns:
    """Which of a table's columns hold what, where their names are plain; None where not."""
    found: dict[str, str] = {}
    for name in names:
        plain = _plain(name)
        for field, known in (
            ("prompt", _PROMPTS),
            ("output", _OUTPUTS),
            ("session", _SESSIONS),
            ("arrival", _ARRIVALS),
        ):
            bare = _SUFFIX.sub("", plain) if field == "arrival" else plain
            if bare in known and field not in found:
                found[field] = name
                break
    return Columns(**found)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")

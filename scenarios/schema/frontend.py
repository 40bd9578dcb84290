"""What lies between an engine's clients and the engine itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scenarios.schema.section import NotNegative, Section


class Frontend(Section):
    """HTTP, tokenizing, hops between processes, detokenizing and streaming, of each replica.

    Requests and tokens queue for its processes. Latencies are the client's: from sending a request
    to seeing a token. What is not given has the value of ``engine.generation``: for ``vllm`` and
    ``vllm-sync`` an assumption, which every result shows; the others have no front end, nor has
    ``latency.source: fixed``.
    """

    # false: clients talk to the engine itself, as where its own timestamps are forecast
    enabled: bool | None = None
    api_server_count: Annotated[int, Field(ge=1, le=1024)] = 1
    per_request_us: NotNegative | None = None  # of a process: parsing, checking, the hop
    per_prompt_token_us: NotNegative | None = None  # of a process: tokenizing
    per_output_token_us: NotNegative | None = None  # of a process: detokenizing, streaming
    latency_us: NotNegative | None = None  # each way, beside all that; keeps no process busy

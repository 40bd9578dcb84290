"""The live endpoint as its clients see it: answers, refusals, faults, metrics, the recording."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import needs

pytest.importorskip("starlette", reason=needs.SERVE)
pytest.importorskip("uvicorn", reason=needs.SERVE)
pytest.importorskip("httptools", reason=needs.SERVE)
pytest.importorskip("prometheus_client", reason=needs.SERVE)
pytest.importorskip("httpx", reason=needs.SERVE)
pytest.importorskip("openai", reason=needs.SERVE)

import httpx
import openai
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_families,
)
from prometheus_client.parser import text_string_to_metric_families

from reports.run.folder import load_run
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from tests.orcast.command_line import refusal

SCENARIO = """
name: served
model: llama-3.1-8b
hardware: {gpu: h200-sxm}
engine: {generation: vllm, max_num_seqs: 32, max_model_len: 4096, max_num_queued_reqs: 24,
         num_gpu_blocks_override: 1200}
latency: {source: roofline}
cluster: {replicas: 2, router: least_outstanding}
workload:
  arrivals: {process: poisson, request_rate: 20}
  lengths:
    prompt: {distribution: fixed, tokens: 64}
    output: {distribution: uniform, min: 5, max: 12}
  num_requests: 50
"""
SPEED = 4


@dataclass
class Server:
    """`orcast serve` in a process of its own."""

    url: str
    record: Path
    process: subprocess.Popen[str]

    def stop(self) -> str:
        """Interrupt it; what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=60)[1]


def start(folder: Path, *options: str, text: str = SCENARIO) -> Server:
    folder.mkdir()
    scenario, record = folder / "served.yaml", folder / "run"
    scenario.write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "orcast", "serve", str(scenario), "--port", "0",
         "--speed", str(SPEED), "--record", str(record), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"http://\S+(?=/v1)", said)
    assert found, process.communicate()[1]
    return Server(found[0], record, process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = start(tmp_path_factory.mktemp("serve") / "one")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def metrics(url: str) -> dict[str, float]:
    """Samples of all replicas added up, by name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_a_chat_is_streamed_token_by_token_with_its_usage_behind(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="llama-3.1-8b",
        messages=[{"role": "user", "content": "abcd" * 30}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert len(text) == 20 * 4, "four characters a token"
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None and not chunks[-1].choices
    assert (usage.prompt_tokens, usage.completion_tokens) == (3 + 30 + 2, 20)


def test_answers_are_as_long_as_the_scenarios_unless_the_request_says_more(
    client: openai.OpenAI,
) -> None:
    def ask(**more: object) -> tuple[int, str]:
        answer = client.completions.create(
            model="llama-3.1-8b", prompt="one two", max_tokens=100, **more  # type: ignore[call-overload]
        )  # fmt: skip
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    tokens, reason = ask()
    assert 5 <= tokens <= 12 and reason == "stop"
    assert ask(extra_body={"min_tokens": 40}) == (40, "stop")
    assert ask(extra_body={"ignore_eos": True}) == (100, "length")


def test_several_prompts_several_answers_and_their_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="llama-3.1-8b", prompt=["abc", "abcdefgh"], n=2, max_tokens=4, logprobs=2,
        echo=False, extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert [one.index for one in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None and answer.usage.prompt_tokens == 1 + 2
    for choice in answer.choices:
        said = choice.logprobs
        assert said is not None and said.tokens is not None and said.top_logprobs is not None
        assert "".join(said.tokens) == choice.text and len(said.tokens) == 4
        assert said.text_offset == [0, 4, 8, 12]
        assert all(len(top) <= 2 and token in top
                   for top, token in zip(said.top_logprobs, said.tokens, strict=True))  # fmt: skip
    chat = client.chat.completions.create(
        model="llama-3.1-8b", messages=[{"role": "user", "content": "x"}], max_tokens=3,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    content = chat.choices[0].logprobs
    assert content is not None and content.content is not None
    assert [len(one.top_logprobs) for one in content.content] == [2] * 3


def test_a_stop_string_ends_the_answer_streamed_or_not(client: openai.OpenAI) -> None:
    asked = {"model": "llama-3.1-8b", "prompt": "abc", "max_tokens": 400, "stop": ["a", "e"]}
    extra = {"ignore_eos": True}
    whole = client.completions.create(**asked, extra_body=extra)  # type: ignore[call-overload]
    assert whole.choices[0].finish_reason == "stop" and not set("ae") & set(whole.choices[0].text)
    chunks = list(client.completions.create(**asked, stream=True, extra_body=extra))  # type: ignore[call-overload]
    text = "".join(one.choices[0].text for one in chunks)
    assert not set("ae") & set(text) and chunks[-1].choices[0].finish_reason == "stop"


def test_a_later_turn_finds_the_turn_before_and_its_answer_in_the_cache(
    client: openai.OpenAI, server: Server
) -> None:
    messages = [{"role": "user", "content": "once upon a time " * 20}]
    cached = []
    for _ in range(3):
        answer = client.chat.completions.create(
            model="llama-3.1-8b", messages=messages, max_tokens=80,  # type: ignore[arg-type]
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content or ""},
            {"role": "user", "content": "and then?"},
        ]
    prompt = 3 + 85 + 2
    assert cached[0] == 0 and cached[1] == (prompt + 79) // 16 * 16
    assert metrics(server.url)["vllm:prefix_cache_hits_total"] >= sum(filter(None, cached))


REFUSED = {
    "unknown model": ({"model": "gpt-9", "prompt": "x"}, 404, "NotFoundError", "model",
                      "The model `gpt-9` does not exist. Valid aliases: llama-3.1-8b."),
    "no prompt": ({}, 400, "Bad Request", "prompt", "Either prompt or prompt_embeds must be"),
    "too long": ({"prompt": "abcd" * 5000}, 400, "BadRequestError", "input_tokens",
                 "This model's maximum context length is 4096 tokens. However, your prompt "
                 "contains 5000 input tokens, which exceeds this limit even without any output "
                 "tokens. Please reduce the length of the input prompt. (parameter=input_tokens, "
                 "value=5000)"),
    "too many": ({"prompt": "x", "max_tokens": 9999}, 400, "BadRequestError", "max_tokens",
                 "max_tokens=9999 cannot be greater than max_model_len=4096. Please request fewer "
                 "output tokens. (parameter=max_tokens, value=9999)"),
    "none": ({"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "max_tokens",
             "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
    "hot": ({"prompt": "x", "temperature": 3}, 400, "BadRequestError", "temperature",
            "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)"),
    "options": ({"prompt": "x", "stream_options": {"include_usage": True}}, 400, "Bad Request",
                "stream_options", "Stream options can only be defined when `stream=True`."),
    "type": ({"prompt": {"a": 1}}, 400, "Bad Request", "body.prompt", "validation errors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_as_vllm_refuses_it(server: Server, case: str) -> None:
    body, status, kind, param, words = REFUSED[case]
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, status, kind)
    assert error["param"] == param and words in error["message"]


@pytest.mark.parametrize(
    ("data", "content_type", "words"),
    [
        (b'{"model":', "application/json", "JSON decode error"),
        (b"\xff\xfe{", "application/json", "error parsing the body"),
        (b"[" * 100_000, "application/json", "error parsing the body"),
        (b"{}", "text/plain", "Unsupported Media Type: Only 'application/json' is allowed"),
        (b"[1, 2]", "application/json", "valid dictionary"),
    ],
    ids=["cut off", "not text", "nested", "another type", "a list"],
)
def test_bodies_that_are_none_are_refused(
    server: Server, data: bytes, content_type: str, words: str
) -> None:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", content=data, headers={"content-type": content_type}
    )
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_who_finds_the_queue_full_hears_so_and_others_are_served(server: Server) -> None:
    async def flood() -> list[int]:
        body = {"prompt": "x", "n": 16, "max_tokens": 900, "ignore_eos": True}
        async with httpx.AsyncClient(timeout=60) as session:
            asked = [session.post(f"{server.url}/v1/completions", json=body) for _ in range(5)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(flood())
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2, "24 sequences a replica"
    assert metrics(server.url)["vllm:admission_rejections_total"] == statuses.count(503)


def test_a_client_that_hangs_up_gives_its_blocks_back(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "abcd" * 2000, "max_tokens": 2000, "ignore_eos": True,
                       "stream": True}).encode()  # fmt: skip
    request = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    for _ in range(4):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(request)
            assert b"200 OK" in connection.recv(4096)
    silent = socket.create_connection((host, int(port)))  # says nothing, and keeps nobody waiting
    deadline = time.monotonic() + 20
    while metrics(server.url)["vllm:kv_cache_usage_perc"] > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    silent.close()
    found = metrics(server.url)
    assert found["vllm:kv_cache_usage_perc"] == found["vllm:num_requests_running"] == 0


def test_a_client_that_does_not_read_misses_nothing_and_keeps_nobody_waiting(
    server: Server, client: openai.OpenAI
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    tokens = 2500
    body = json.dumps({"prompt": "abcd", "max_tokens": tokens, "ignore_eos": True, "stream": True})
    before = metrics(server.url)["vllm:request_success_total"]
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect((host, int(port)))
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body.encode()
        )
        others = 0
        while metrics(server.url)["vllm:request_success_total"] <= before + others:
            client.completions.create(model="llama-3.1-8b", prompt="x", max_tokens=8)
            others += 1
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += slow.recv(1 << 16)
    events = [json.loads(line) for line in re.findall(rb"^data: (\{.*)$", received, re.MULTILINE)]
    assert sum(len(one["choices"][0]["text"]) for one in events) == 4 * tokens
    assert len(events) < tokens, "what could not be written came together"


def test_other_paths_answer(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    found = httpx.post(f"{server.url}/tokenize", json={"prompt": "abcdefg"}).json()
    assert (found["count"], found["max_model_len"], len(found["tokens"])) == (2, 4096, 2)
    page = httpx.get(server.url)
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    assert "served, live" in page.text
    state = httpx.get(f"{server.url}/live/state").json()
    assert [one["state"] for one in state["replicas"]] == ["serving", "serving"]


def test_metrics_are_those_that_dashboards_ask_for(server: Server, client: openai.OpenAI) -> None:
    before = metrics(server.url)
    client.completions.create(model="llama-3.1-8b", prompt="x", max_tokens=5,
                              extra_body={"ignore_eos": True})  # fmt: skip
    found = metrics(server.url)
    gained = {name: found[name] - before.get(name, 0) for name in found}
    assert gained["vllm:generation_tokens_total"] == 5
    assert gained["vllm:prompt_tokens_total"] == 1
    assert gained["vllm:request_success_total"] == 1
    assert gained["vllm:inter_token_latency_seconds_count"] == 4
    for name in (
        "time_to_first_token",
        "e2e_request_latency",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
        "request_time_per_output_token",
    ):
        assert gained[f"vllm:{name}_seconds_count"] == 1
    text = httpx.get(f"{server.url}/metrics").text
    assert 'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001"' in text
    assert 'le="2560.0"' in text and 'le="+Inf"' in text
    accept = {"accept": "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"}
    text = httpx.get(f"{server.url}/metrics", headers=accept).text
    assert text.count("# EOF") == 1
    names = {one.name for one in open_families(text)}
    assert names >= {"vllm:generation_tokens", "orcast:token_delay_seconds"}


def test_the_recording_is_what_a_simulation_of_the_same_arrivals_gives(server: Server) -> None:
    """The last of this server's tests: it ends it."""
    assert server.stop() == "", "no traceback, whatever clients did"
    scenario, origin = load_scenario(str(server.record / "scenario.yaml"))
    again = forecast(scenario, origin=origin)
    records, _, summary = load_run(server.record)
    assert summary["mode"] == "live" and summary["cancelled"] == 4 and summary["refused"] > 0
    for table in ("requests", "iterations", "preemptions"):
        columns, others = getattr(records, table), getattr(again.records, table)
        assert columns.keys() == others.keys()
        for name, column in columns.items():
            np.testing.assert_array_equal(column, others[name], err_msg=f"{table}.{name}")


def test_keys_faults_and_limits_while_it_serves(tmp_path: Path) -> None:
    options = ("--api-key", "secret", "--fail", "0@0.05+0.6", "--served-model-name", "mine",
               "--set", "engine.max_num_queued_reqs=null")  # fmt: skip
    server = start(tmp_path / "two", *options)
    closing = ExitStack()
    try:
        body = {"model": "mine", "prompt": "abc", "max_tokens": 90, "ignore_eos": True}
        asking = closing.enter_context(httpx.Client(base_url=server.url, timeout=60))
        assert asking.post("/v1/completions", json=body).status_code == 401
        assert asking.post("/live/settings", json={"error_rate": 1}).status_code == 401
        asking.headers["authorization"] = "Bearer secret"
        assert asking.post("/v1/completions", json=body).status_code == 200
        assert asking.post("/live/settings", json={"error_rate": 7}).status_code == 400
        origin = {"origin": "http://elsewhere.example"}
        foreign = asking.post("/live/settings", json={"error_rate": 1}, headers=origin)
        assert foreign.status_code == 403, "another site's page changes nothing"
        rebound = {"host": "elsewhere.example", "origin": "http://elsewhere.example"}
        foreign = asking.post("/live/settings", json={"error_rate": 1}, headers=rebound)
        assert foreign.status_code == 403, "not even where its name points to this machine"
        assert asking.post("/live/settings", json={"error_rate": 1}).status_code == 200
        failed = asking.post("/v1/completions", json=body)
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "InternalServerError")
        asking.post("/live/settings", json={"error_rate": 0, "drop_rate": 1})
        with (
            pytest.raises(httpx.RemoteProtocolError),
            asking.stream("POST", "/v1/completions", json=body | {"stream": True}) as broken,
        ):
            list(broken.iter_lines())
        asking.post("/live/settings", json={"drop_rate": 0, "max_num_queued_reqs": 0})
        refused = asking.post("/v1/completions", json=body)
        assert refused.status_code == 503 and "currently busy" in refused.json()["error"]["message"]
        states = {one["state"] for one in asking.get("/live/state").json()["replicas"]}
        assert states <= {"serving", "down"}
    finally:
        closing.close()
        assert server.stop() == ""
    summary = json.loads((server.record / "summary.json").read_text())
    assert any("limits were changed" in warning for warning in summary["warnings"])
    assert "replica: 0" in (server.record / "scenario.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fail", "5@1"), "there is no replica 5: the last of 1 is 0"),
        (("--fail", "soon"), "expected REPLICA@SECONDS or REPLICA@SECONDS+SECONDS"),
        (("--on-failure", "cry"), "allowed are retry and drop"),
        (("--tokenizer", "nowhere.json"), "no such file, expected a tokenizer.json"),
        (("--host", "256.1.1.1"), "--host 256.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(options: tuple[str, str], words: str) -> None:
    assert words in refusal("serve", "quickstart", "--port", "0", "--set",
                            "latency.source=roofline", *options)  # fmt: skip

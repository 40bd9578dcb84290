"""Other people's clients, unchanged, against `orcast serve`: `make test-clients`.

Each is run from an environment of its own (the Makefile makes them), against a server of its own,
and has to end well with all its requests answered, as the server counts them. Clients whose program
is not given are left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

REQUESTS = 20
MODEL = "llama-3.1-8b"
_END_S = 900.0  # of a client
WORDS = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, 2048))]


def tokenizer(folder: Path, *, english: bool) -> Path:
    """A tokenizer for clients that count for themselves, with a word a token: those that draw ids
    find every one of them again; of `english` that others write each letter is a token besides."""
    folder.mkdir()
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    model: dict[str, Any] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    if english:
        pieces = [*WORDS[:3], *(f" {word}" for word in WORDS[3:]), *string.printable]
        scored = [[piece, -1.0 if piece.startswith(" w") else -10.0] for piece in pieces]
        model = {"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None if english else {"type": "Whitespace"},
        "post_processor": None, "decoder": {"type": "Fuse"} if english else None, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    kind = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072,
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": "{% for one in messages %}{{ one['content'] }} {% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048,
              "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
              "num_attention_heads": 8, "max_position_embeddings": 131072}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def vllm(program: str, url: str, words: Path, out: Path) -> list[str]:
    """`vllm bench serve`; `program` is the Python of its environment."""
    host, port = url.removeprefix("http://").split(":")
    return [
        program, "-P", "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--host", host,
        "--port", port, "--backend", "openai", "--endpoint", "/v1/completions", "--model", MODEL,
        "--tokenizer", str(words), "--dataset-name", "random", "--random-input-len", "64",
        "--random-output-len", "32", "--num-prompts", str(REQUESTS), "--request-rate", "10",
        "--ignore-eos",
    ]  # fmt: skip


def guidellm(program: str, url: str, words: Path, out: Path) -> list[str]:
    return [
        program, "run", "--backend", f"kind=openai_http,target={url},model={MODEL}",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={words}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32",
        "--output", f"kind=json,path={out / 'guidellm.json'}", "--disable-console-interactive",
    ]  # fmt: skip


def aiperf(program: str, url: str, words: Path, out: Path) -> list[str]:
    return [
        program, "profile", "--model", MODEL, "--url", url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", str(words), "--concurrency", "4",
        "--request-count", str(REQUESTS), "--synthetic-input-tokens-mean", "64",
        "--output-tokens-mean", "32", "--extra-inputs", "ignore_eos:true", "--ui", "none",
        "--artifact-dir", str(out / "aiperf"),
    ]  # fmt: skip


def inference_perf(program: str, url: str, words: Path, out: Path) -> list[str]:
    """Needs Python 3.12 or newer."""
    config = out / "inference-perf.yaml"
    load = {
        "api": {"type": "completion", "streaming": True},
        "data": {"type": "random", "input_distribution": _lengths(64),
                 "output_distribution": _lengths(32)},
        "load": {"type": "constant", "stages": [{"rate": 10, "duration": REQUESTS // 10}]},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(words)},
        "report": {"request_lifecycle": {"per_request": True}},
    }  # fmt: skip
    config.write_text(json.dumps(load))  # JSON is YAML
    return [program, "--config_file", str(config)]


def _lengths(tokens: int) -> dict[str, int]:
    return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0, "total_count": REQUESTS}


CLIENTS: dict[str, Callable[[str, str, Path, Path], list[str]]] = {
    "vllm": vllm,
    "guidellm": guidellm,
    "aiperf": aiperf,
    "inference-perf": inference_perf,
}


def answered(url: str) -> int:
    """Requests that the server has answered to their ends."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    return int(sum(float(one) for one in re.findall(r"^vllm:request_success_total\S* (\S+)", text,
                                                    re.MULTILINE)))  # fmt: skip


def tried(name: str, program: str, folder: Path) -> bool:
    """Whether a client ends well."""
    words, out = tokenizer(folder / "words", english=name == "guidellm"), folder / "out"
    out.mkdir()
    # vLLM's command line looks for a package of its own name.
    metadata = folder / "vllm-0.32.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    server = subprocess.Popen(
        [sys.executable, "-m", "orcast", "serve", "quickstart", "--port", "0",
         "--tokenizer", str(words), "--served-model-name", MODEL],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+(?=/v1)", server.stdout.readline())
        assert found, "orcast serve did not start"
        environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
        if name != "aiperf":  # which takes a folder for a name on the hub when it is offline
            environment["HF_HUB_OFFLINE"] = "1"
        if name == "vllm":
            environment["PYTHONPATH"] = str(folder)
        with (out / "log").open("wb") as log:
            done = subprocess.run(
                CLIENTS[name](program, found[0], words, out), env=environment, stdout=log,
                stderr=log, timeout=_END_S, cwd=out,
            )  # fmt: skip
        count = answered(found[0])
        print(f"{name}: exit status {done.returncode}, {count} requests answered", flush=True)
        if done.returncode or count < REQUESTS:
            print((out / "log").read_text(errors="replace")[-3000:])
            return False
        return True
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in CLIENTS:
        parser.add_argument(f"--{name}", metavar="PROGRAM", default="")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="what the clients wrote")
    given = vars(parser.parse_args())
    failed = []
    for name in CLIENTS:
        program = given[name.replace("-", "_")]
        if not program:
            print(f"{name}: not given, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            if not tried(name, str(Path(program).absolute()), Path(folder)):
                failed.append(name)
            if given["keep"] is not None:
                shutil.copytree(Path(folder) / "out", given["keep"] / name, dirs_exist_ok=True)
    print(f"failed: {', '.join(failed)}" if failed else "all ended well")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

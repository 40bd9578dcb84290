"""What would take more than any machine has is refused with the figure, before any work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from tests.attack.kinds import BASE
from tests.orcast.command_line import refusal


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.num_gpu_blocks_override=16777216", "cluster.replicas=1024"], "KV blocks"),
        (
            ["workload.num_requests=100000000", "workload.samples={n: 16, lengths: equal}"],
            "sequences take at least",
        ),
        (
            [
                "workload.num_requests=10000000",
                "workload.shared_prefixes={num_prefixes: 2, tokens: 2000000}",
            ],
            "blocks of prompts take at least",
        ),
        (
            [
                "workload.lengths.output={distribution: fixed, tokens: 2000000000}",
                "engine.max_model_len=2147483647",
                "engine.num_gpu_blocks_override=16000000",
            ],
            "iterations",
        ),
        (["hardware.gpu={like: h100-sxm, memory_gb: 1.0e+12}"], "KV blocks"),
    ],
)
def test_more_than_any_machine_has_is_refused_with_its_figure(
    settings: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(BASE))
    asked = [part for setting in settings for part in ("--set", setting)]
    began_s = time.monotonic()
    line = refusal("run", "small.yaml", *asked)
    assert words in line, line
    assert time.monotonic() - began_s < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]

"""The real engine on the Triton kernels: in the interpreter, or on a GPU with CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from calibrate.engine.assembly import engine
from calibrate.engine.wall_clock import Clock
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from tests.calibrate.engine.tiny_model import CONFIG, all_logits, drawn_workload

SMALL = replace(CONFIG, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=61)
# policy, KV blocks (few enough for preemptions), further settings
CASES = {
    "static": ("static", 60, {}),
    "orca": ("orca", 40, {}),
    "paged, swap": ("paged", 16, {"preemption": "swap", "swap_blocks": 40}),
    "chunked, prefix cache": ("chunked", 14, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_engine_serves_the_likeliest_tokens(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    scheduler, num_blocks, settings = CASES[name]
    generator = torch.Generator(device).manual_seed(3)
    model = Transformer.random(
        SMALL, generator=generator, dtype=dtype, device=device, backend="triton"
    )
    workload = drawn_workload(5, seed=4, shared_tokens=9, vocab_size=SMALL.vocab_size)
    limits = {"max_num_seqs": 3, "max_num_batched_tokens": 32, "block_size": 8, "watermark": 0.0}
    served = engine(
        workload,
        EngineConfig(**(limits | settings)),
        model,
        scheduler=scheduler,
        num_blocks=num_blocks,
        capture_sizes=(1, 2, 4) if device.type == "cuda" else (),
        clock=Clock(skip_idle=True),
        check=True,
    ).run()
    assert served.errors == {}
    content = workload.content
    assert content is not None
    reference = Transformer.random(
        SMALL,
        generator=torch.Generator(device).manual_seed(3),
        dtype=dtype,
        device=device,
        backend="torch",
    )
    near = 1e-3 if dtype == torch.float32 else 0.25  # likeliest up to rounding
    for request, output in served.outputs.items():
        first, last = content.offsets[request : request + 2]
        prompt = content.ids[first:last].tolist()
        assert len(output) == workload.output_tokens[request]
        logits = all_logits(reference, torch.tensor([*prompt, *output], device=device))
        for place, token in enumerate(output):
            row = logits[len(prompt) + place - 1]
            assert row[token] >= row.max() - near, (request, place)

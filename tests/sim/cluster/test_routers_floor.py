"""What a router may take for granted of a replica's memory, and when no longer."""

from __future__ import annotations

import numpy as np
import pytest

from scenarios.forecast.forecast import forecast
from scenarios.forecast.served import serve
from scenarios.schema.load import parse_scenario
from tests.sim.serving import assert_same_records


@pytest.mark.parametrize("seed", [0, 7])
def test_a_refused_request_is_no_load_any_more(seed: int) -> None:
    """Refused on its way out of a front end, it leaves less to be computed than was counted."""
    lengths = {
        side: {"distribution": "uniform", "min": 1, "max": most}
        for side, most in (("prompt", 50), ("output", 40))
    }
    content = {
        "name": "refused",
        "model": "mixtral-8x7b",
        "hardware": {"gpu": "h200-sxm", "tensor_parallel": 2},
        "engine": {
            "scheduler": "chunked", "async_scheduling": False, "max_num_seqs": 1,
            "max_num_batched_tokens": 256, "block_size": 1, "num_gpu_blocks_override": 2000,
            "enable_prefix_caching": False, "max_num_queued_reqs": 1,
        },
        "workload": {
            "arrivals": {"process": "gamma", "request_rate": 60.0, "burstiness": 0.3},
            "num_requests": 12, "seed": seed, "lengths": lengths, "max_tokens": 20,
        },
        "cluster": {
            "router": "least_kv",
            "groups": [{"replicas": 2}, {"replicas": 1}],
            "failures": [{"replica": 2, "at_s": 0.1}],
        },
        "frontend": {
            "enabled": True, "per_request_us": 0.0, "per_prompt_token_us": 0.0,
            "per_output_token_us": 3906.25, "latency_us": 7812.5,
        },
    }  # fmt: skip
    found = forecast(parse_scenario(content, origin="test"), check=True)
    stepped, _ = serve(found.deployment, leap=False, check=True)
    assert found.records.requests["refused"].any()
    assert_same_records(found.records, stepped)
    assert np.isfinite(stepped.requests["finished_s"]).any()

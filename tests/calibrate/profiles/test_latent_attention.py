"""Latent attention from measured modules: the fastest engine's, and for those without their own."""

from __future__ import annotations

import pytest

from calibrate.profiles import latent_attention
from calibrate.profiles.kernel_tables import KernelTables, find_system
from tests import needs

ASKED = {"heads": 16, "kv_dtype": "bfloat16"}


def tables(backend: str, gpu: str = "h200-sxm") -> KernelTables:
    system = find_system(gpu)
    return KernelTables(system, backend, system.versions(backend)[0])


@needs.tables
@pytest.mark.parametrize("times", [latent_attention.decode_us, latent_attention.prefill_us])
def test_the_fastest_engines_module_stands_for_all(times: object) -> None:
    assert callable(times)
    of_vllm, of_trtllm, of_sglang = (
        times(tables(backend), latent_attention.MEASURED, **ASKED)
        for backend in ("vllm", "trtllm", "sglang")
    )
    both = of_vllm.keys() & of_trtllm.keys()
    assert len(both) > 10
    assert all(of_vllm[key] == of_trtllm[key] for key in both), "whoever asks"
    assert of_sglang, "has no module of its own"
    assert all(of_sglang[key] == of_vllm[key] for key in of_sglang.keys() & both)
    assert min(of_vllm.values()) >= latent_attention.LEAST_US

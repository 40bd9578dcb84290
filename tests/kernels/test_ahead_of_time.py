"""Every shipped kernel configuration compiles for sm_90, and some for sm_80 and sm_100: no GPU.

``ahead_of_time/compile_all.py`` runs once an architecture, in a process of its own; all of each is
what ``python -m tests.benchmarks.cost_model`` compiles. These tests read its report: registers and
spills as ptxas states them, shared memory, matrix instructions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from tests.benchmarks import cost_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
WHOLE = 90  # the architecture that they are made for
MATRIX_KERNELS = {
    "_decode_attention_kernel",
    "_prefill_attention_kernel",
    "_scores_kernel",
    "_values_kernel",
    "_linear_kernel",
    "_gate_up_kernel",
    "_grouped_linear_kernel",
}

FLOAT8_KERNELS = {"_quantize_kernel"}  # no type of sm_80

# What changes from batch to batch: a new value must not mean a new kernel.
COUNTS = {
    "M", "num_pairs", "num_queries", "num_rows", "num_seqs", "num_splits", "num_tokens",
    "split_depth", "table_stride", "total_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """What was compiled for each architecture, all at the same time."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    script = HERE / "ahead_of_time" / "compile_all.py"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = {
        arch: subprocess.Popen(
            [sys.executable, str(script), str(arch), *([] if arch == WHOLE else ["--few"])],
            cwd=ROOT,
            env=environment,
            **pipes,
        )
        for arch in SHARED_LIMIT_BYTES
    }
    outputs = {arch: process.communicate() for arch, process in processes.items()}
    for arch, process in processes.items():
        assert process.returncode == 0, outputs[arch][1][-4000:]
    lines = {arch: out.splitlines() for arch, (out, _) in outputs.items()}
    return {arch: [json.loads(line) for line in printed] for arch, printed in lines.items()}


@pytest.fixture(params=SHARED_LIMIT_BYTES, ids="sm_{}".format)
def compiled(request: pytest.FixtureRequest, reports: dict[int, list[dict]]) -> list[dict]:
    """One architecture's kernel configurations."""
    return reports[request.param]


def _described(configuration: dict) -> str:
    names = ("kernel", "arch", "num_warps", "num_stages", "constants")
    return ", ".join(f"{name} {configuration[name]}" for name in names)


def test_every_kernel_of_the_package_is_compiled(compiled):
    sources = (path.read_text() for path in (ROOT / "kernels").glob("*.py"))
    defined = {name for text in sources for name in re.findall(r"^def (_\w+_kernel)\(", text, re.M)}
    without = FLOAT8_KERNELS if compiled[0]["arch"] < 89 else set()
    assert {configuration["kernel"] for configuration in compiled} == defined - without
    assert defined >= MATRIX_KERNELS


def test_counts_of_a_batch_are_not_compiled_in(compiled):
    """Triton makes a constant of an argument that is 1, unless told not to."""
    fixed = [_described(c) for c in compiled if COUNTS & c["constants"].keys()]
    assert not fixed, "\n".join(fixed)


def test_no_configuration_spills_registers(compiled):
    spilling = [_described(c) for c in compiled if c["spill_bytes"] != 0 or c["stack_bytes"] != 0]
    assert not spilling, "\n".join(spilling)
    assert all(0 < c["registers"] <= 255 for c in compiled)


def test_the_assembler_warns_of_nothing(compiled):
    """C7515, for one: the products of a loop run one after the other."""
    warned = [f"{_described(c)}: {c['warnings']}" for c in compiled if c["warnings"]]
    assert not warned, "\n".join(warned)


def test_packed_prefill_never_waits_for_all_that_is_in_flight(compiled):
    """The loop over keys loads its next tiles while it computes on those that have come."""
    packed = [
        c for c in compiled
        if c["kernel"] == "_prefill_attention_kernel" and c["constants"]["KV_BLOCK"] == 0
    ]  # fmt: skip
    assert packed
    waiting = [f"{_described(c)}: {c['loop_waits']}" for c in packed if 0 in c["loop_waits"]]
    assert not waiting, "\n".join(waiting)
    assert all(c["loop_waits"] or c["tma_loads"] for c in packed)


def test_shared_memory_stays_within_a_blocks_limit(compiled):
    over = [
        f"{_described(c)}: {c['shared_bytes']}"
        for c in compiled
        if c["shared_bytes"] > SHARED_LIMIT_BYTES[c["arch"]]
    ]
    assert not over, "\n".join(over)


def test_matrix_kernels_use_the_tensor_cores(compiled):
    without = [
        _described(c) for c in compiled if c["kernel"] in MATRIX_KERNELS and not c["tensor_core"]
    ]
    assert not without, "\n".join(without)


def test_hopper_tiles_of_64_rows_use_warpgroup_instructions(compiled):
    """A swapped tile's rows are its BLOCK_N weights; 16 tokens alone are too few for a group."""
    for c in compiled:
        if c["arch"] != 90 or c["kernel"] not in MATRIX_KERNELS:
            continue
        rows = c["constants"]["BLOCK_N" if c["constants"].get("SWAP") else "BLOCK_M"]
        if rows >= 64:
            assert c["tensor_core"] == "wgmma", _described(c)


def test_blackwell_tiles_of_128_rows_accumulate_in_tensor_memory(compiled):
    for c in compiled:
        on = c["arch"] == 100 and c["kernel"] in MATRIX_KERNELS
        if on and c["constants"]["BLOCK_M"] >= 128:
            assert c["tensor_core"] == "tcgen05", _described(c)


def test_matrix_kernels_load_ahead_of_their_products(compiled):
    """Operands come through asynchronous copies: the pipeliner did not give up."""
    pipelined = MATRIX_KERNELS - {"_scores_kernel"}  # it has no loop to pipeline
    stalled = [
        _described(c)
        for c in compiled
        if c["kernel"] in pipelined and c["async_copies"] + c["tma_loads"] == 0
    ]
    assert not stalled, "\n".join(stalled)


def test_no_kernel_got_worse_than_it_was_accepted(compiled):
    """Fewer programs on a multiprocessor or more registers: a silent loss, found without a GPU."""
    costs = [cost_model.cost(one) for one in compiled]
    found = cost_model.worse(costs, cost_model.read())
    assert not found, "\n".join(found)
    names, accepted = cost_model.worst_by_name(costs).keys(), cost_model.read().keys()
    known = len(names & accepted) / len(names)
    assert known >= 0.75, "python -m tests.benchmarks.cost_model --write"

"""What an engine logged of its iterations, read back as batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.recordings.iteration_log import read_iteration_log
from calibrate.recordings.measurement import MeasurementError

LINES = """\
(EngineCore pid=7) INFO 11-29 21:00:42 [loggers.py:201] Engine 000: Iteration(0): 2 context \
requests, 301 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: \
25.50 ms, CPU KV cache usage: 1.9%
INFO:     127.0.0.1:42976 - "GET /metrics HTTP/1.1" 200 OK
Iteration(1): 0 context requests, 0 context tokens, 2 generation requests, 2 generation tokens, \
iteration elapsed time: 4.25 ms, GPU KV cache usage: 2.0%
Iteration(2): 0 context requests, 0 context tokens, 0 generation requests, 0 generation tokens, \
iteration elapsed time: 0.50 ms (dummy), GPU KV cache usage: 2.0%
"""


def test_the_lines_of_vllm_become_batches(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(LINES)
    log = read_iteration_log(path, slots=16_000)
    assert log is not None and len(log) == 2, "a dummy iteration computes nothing of ours"
    assert log.duration_s.tolist() == pytest.approx([0.0255, 0.00425])
    assert log.start_s.tolist() == pytest.approx([0.0, 0.0255])
    prompts, decodes = log.batch(0), log.batch(1)
    assert [chunk.new_tokens for chunk in prompts.prefills] == [151, 150]
    assert (prompts.num_tokens, prompts.num_emitting, prompts.num_decodes) == (301, 2, 0)
    assert (decodes.num_decodes, decodes.context_tokens) == (2, 320), "2 % of 16,000 tokens"
    assert decodes.longest_tokens == 160


def test_other_files_are_no_such_log_and_empty_iterations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.log"
    path.write_text("nothing of that kind\n")
    assert read_iteration_log(path, slots=100) is None
    assert read_iteration_log(tmp_path, slots=100) is None
    path.write_text(LINES.replace("4.25", "0.00"))
    with pytest.raises(MeasurementError, match="an iteration of 0 ms"):
        read_iteration_log(path, slots=100)
    with pytest.raises(MeasurementError, match="cannot be read"):
        read_iteration_log(tmp_path / "absent.log", slots=100)

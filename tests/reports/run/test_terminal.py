"""The terminal summary reads like vLLM's block and trusts no text."""

import io

from rich.console import Console

from reports.run.terminal import summary_table
from reports.run.tier_section import tier_sections
from scenarios.quantity import MISSING


def rendered(summary, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(summary_table(summary))
    return console.file.getvalue()


def test_block_reads_like_vllms(make_batched_run):
    run = make_batched_run([6, 8, 4, 7], rows=2)
    lines = rendered(run.summary).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == "Successful requests:                             4"
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert f"Median TTFT (ms): {run.summary['median_ttft_ms']:>32.2f}" in lines
    assert f"Latency source:{'roofline, not measured':>35}" in lines
    assert all(len(line) == 50 for line in lines)


def test_statistics_stand_in_the_order_mean_median_p90_p99(make_batched_run):
    text = rendered(make_batched_run([6, 8], rows=2).summary)
    places = [text.index(f"{name} E2EL (ms):") for name in ("Mean", "Median", "P90", "P99")]
    assert places == sorted(places)


def test_warnings_come_last_without_markup_or_control_characters(make_batched_run):
    summary = make_batched_run([6], rows=1).summary
    summary["warnings"] = ["[red]load[/red] exceeds capacity \x1b[2J\nnow"]
    lines = rendered(summary).splitlines()
    assert lines[-1] == "warning: [red]load[/red] exceeds capacity  [2J now"


def test_goodput_is_shown_only_where_it_was_asked_for(make_batched_run):
    summary = make_batched_run([6], rows=1).summary
    assert "goodput" in rendered(summary)
    del summary["request_goodput"]
    assert "goodput" not in rendered(summary)


def test_run_without_results_shows_dashes():
    text = rendered({"completed": 0, "rejected": 3, "mean_ttft_ms": float("nan")})
    assert "Rejected requests:                               3" in text
    assert "Time to First Token" not in text
    assert "nan" not in text.lower()


def test_unmeasured_source_is_named_so(make_batched_run):
    summary = make_batched_run([6], rows=1).summary
    summary["latency"] = {"source": "roofline", "measured": False}
    assert "roofline (not measured)" in rendered(summary)
    summary["latency"] = {"source": "table", "measured": True, "label": "H200"}
    assert "not measured" not in rendered(summary)


def test_speculation_says_what_was_expected_and_what_came(make_batched_run):
    summary = make_batched_run([6], rows=1).summary
    assert "Tokens per step" not in rendered(summary)
    summary["speculation"] = {
        "expected_tokens_per_step": 2.7731,
        "acceptance_length": 2.7593,
        "tokens_per_step": None,
        "draft_acceptance_rate": 0.4398,
        "draft_share": 0.18,
    }
    lines = rendered(summary).splitlines()
    assert f"Tokens per step:{MISSING:>34}" in lines
    assert f"Acceptance length, expected:{'2.77':>22}" in lines
    assert f"Acceptance length, achieved:{'2.76':>22}" in lines
    assert f"Draft acceptance rate (%):{'43.98':>24}" in lines
    assert f"Time spent drafting (%):{'18.00':>26}" in lines


def test_tiers_have_a_line_and_a_row_each(make_batched_run):
    summary = make_batched_run([6], rows=1).summary
    assert "blocks found" not in rendered(summary) and not list(tier_sections(summary))
    blocks = {"found_blocks": 6, "blocks": 1024, "held_blocks": 9, "passed_over_blocks": 3}
    summary["kv_tiers"] = [
        {"kind": "device", "hit_rate": 0.25, "found_blocks": 5},
        {"kind": "shared", "hit_rate": 0.3, **blocks, "read_bytes": 2e9, "written_bytes": 0},
        {"kind": "<b>", "hit_rate": 0.3},
        {"kind": [], "hit_rate": 0.3},
    ]
    lines = [line for line in rendered(summary).splitlines() if "blocks found" in line]
    assert [line.split(":")[1].strip() for line in lines] == ["25.00", "30.00"]
    assert all(len(line) == 50 for line in lines)
    (section,) = tier_sections(summary)
    (table,) = section.parts
    assert "store of all replicas" in table and "<b>" not in table

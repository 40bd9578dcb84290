"""The what-if page's table: limits beside latencies, changes, and columns without a forecast."""

from __future__ import annotations

from typing import Any

from reports.what_if.table import figures_of, limits_of, rows


def snapshot(**summary: Any) -> dict[str, Any]:
    limit = {"metric": "ttft", "limit_ms": 200.0, "within": 0.9, "met": False}
    limit["value_ms"] = summary.get("p99_ttft_ms")
    summary["verdict"] = {"percentile": 99, "limits": [limit]}
    return {"figures": figures_of(summary), "limits": limits_of(summary)}


def texts(*shown: Any) -> dict[str, list[str]]:
    return {
        row.label: [cell.text.replace("\u00a0", " ") for cell in row.cells] for row in rows(*shown)
    }


def test_a_latency_that_has_a_limit_stands_beside_it_once() -> None:
    now = snapshot(p99_ttft_ms=243.0, median_ttft_ms=50.0)
    found = texts(now, None)
    assert list(found) == ["TTFT, p99", "TTFT, median"]
    assert found["TTFT, p99"] == ["243 ms, limit 200 ms", "–", ""]
    assert rows(now, None)[0].cells[0].tone == "bad"


def test_changes_are_percentages_or_factors() -> None:
    now = snapshot(output_throughput=50.0, preemptions=3, p99_ttft_ms=9000.0, kv_utilization=0.5)
    old = snapshot(output_throughput=100.0, preemptions=0, p99_ttft_ms=90.0, kv_utilization=0.4)
    found = texts(now, old)
    assert found["Output tokens/s"] == ["50", "100", "−50.0 %"]
    assert found["Preemptions"][2] == "3 more"
    assert found["TTFT, p99"][2] == "100 times"
    tones = {row.label: row.cells[2].tone for row in rows(now, old)}
    assert (tones["Output tokens/s"], tones["KV memory used"]) == ("bad", "")


def test_figures_within_a_section_of_the_summary_are_found() -> None:
    cost = {"usd_per_million_output_tokens": 0.326, "usd_per_hour": 3.8, "gpus": 1}
    energy = {"joules_per_output_token": 0.111}
    found = texts(snapshot(cost=cost, energy=energy), None, [{}, snapshot(cost=None)])
    assert found["$ per million output tokens"] == ["0.326", "–", "", "–", "–"]
    assert found["GPUs"][0] == "1"
    assert found["J per output token, estimated"][0] == "0.111"

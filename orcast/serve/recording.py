"""What was served, as a run folder: records, report, and the arrivals to simulate it again."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from orcast.serve.live_engine import LiveEngine
from scenarios.forecast.forecast import concluded
from scenarios.forecast.run_details import run_details
from scenarios.schema.load import parse_scenario
from scenarios.schema.scenario import Scenario
from sim.records import Records
from sim.workload import Workload

ARRIVALS = "arrivals.jsonl"
CHANGED = (
    "limits were changed while it was served: a simulation of the same arrivals has those that it "
    "began with"
)
UNSHOWN = "Limits were changed while it was served: it cannot be simulated again to be drawn."


def write_recording(
    folder: Path, engine: LiveEngine, records: Records, workload: Workload, *, origin: Path
) -> None:
    """Write the run folder."""
    from reports.run.writer import write_run

    given = engine.options.deployment
    scenario = recorded_scenario(given.scenario, engine, origin=origin)
    notes = list(given.notes) + ([CHANGED] if engine.settings_changed else [])
    deployment = replace(given, scenario=scenario, workload=workload, notes=tuple(notes))
    if scenario.cluster.is_plain and workload.leaves_s is None:
        del records.requests["retries"]  # as its forecast has none
    facts = engine.cluster.facts
    result = concluded(
        deployment, records, facts, origin=origin, mode="live", since_s=time.perf_counter()
    )
    write_arrivals(folder / ARRIVALS, workload, engine.source.block_size)
    write_run(
        folder,
        records,
        scenario=result.scenario,
        summary=result.summary,
        details=run_details(
            result, origin=origin, unrepeatable=UNSHOWN if engine.settings_changed else None
        ),
    )


def recorded_scenario(scenario: Scenario, engine: LiveEngine, *, origin: Path) -> Scenario:
    """The scenario with what came for its workload, and the failures that there were."""
    content = scenario.model_dump(mode="json", exclude_unset=True)
    kept = ("class_priority", "class_deadline_ms", "seed", "sampling")
    workload = {key: value for key, value in content["workload"].items() if key in kept}
    workload |= {"trace": ARRIVALS, "format": "orcast"}
    content["workload"] = workload
    if engine.failures:
        content.setdefault("cluster", {})["failures"] = [
            {"replica": one.replica, "at_s": one.at_s}
            | ({"recover_after_s": one.recover_after_s} if one.recover_after_s < inf else {})
            for one in engine.failures
        ]
    return parse_scenario(content, origin=str(origin))


def write_arrivals(path: Path, workload: Workload, block_size: int) -> None:
    """A line a request, in the format ``orcast``: to the last bit what came."""
    samples, content, leaves_s = workload.samples, workload.content, workload.leaves_s
    first: list[int] = [] if samples is None else samples.offsets.tolist()
    with path.open("w", encoding="utf-8") as out:
        for number in range(len(workload)):
            line: dict[str, Any] = {
                "arrival_s": float(workload.arrival_s[number]),
                "prompt_tokens": int(workload.prompt_tokens[number]),
                "output_tokens": int(workload.output_tokens[number]),
                "max_tokens": int(workload.max_tokens[number]),
            }
            if samples is not None:
                span = slice(first[number], first[number + 1])
                line["sample_tokens"] = samples.output_tokens[span].tolist()
            if leaves_s is not None and isfinite(leaves_s[number]):
                line["leaves_s"] = float(leaves_s[number])
            if workload.labels is not None:
                line["class"] = workload.labels[number]
            if content is not None:
                begin, end = content.offsets[number : number + 2].tolist()
                line["block_tokens"] = block_size
                line["hash_ids"] = np.asarray(content.ids[begin:end]).tolist()
            out.write(json.dumps(line, separators=(",", ":")) + "\n")

"""details.json of a run folder: what the report shows beyond the records, folded small.

The times of a run's iterations by class of operation are added up over the bins of its charts;
what is left does not grow with the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.page.records import RunRecords
from reports.page.timeline import Timeline, chart_edges, run_end_s
from scenarios.quantity import compact
from sim import plain_file

if TYPE_CHECKING:
    from scenarios.forecast.block_tables import BlockTables
    from scenarios.forecast.run_details import RunDetails

FILE = "details.json"
VERSION = 1

Details = Mapping[str, Any]


def folded(records: RunRecords, details: RunDetails) -> dict[str, Any]:
    """`details` as plain data for details.json and the page."""
    work, blocks = details.work, details.blocks
    return {
        "version": VERSION,
        "operators": _operators(records, details),
        "work": {
            "rows": work.rows.tolist(),
            "kind": work.kind.tolist(),
            "flops": compact(work.flops, 6),
            "bytes": compact(work.moved_bytes, 6),
            "roof": work.roof.tolist(),
            "roofs": [
                {
                    "gpu": roof.gpu,
                    "weight_dtype": roof.weight_dtype,
                    "peak_flops_per_s": roof.peak_flops_per_s,
                    "memory_bytes_per_s": roof.memory_bytes_per_s,
                }
                for roof in work.roofs
            ],
            "of_each_kind": list(work.of_each_kind),
        },
        "blocks": blocks if isinstance(blocks, str) else _blocks(blocks),
        "model": details.model,
        "origins": [[one.part, one.measured, one.source] for one in details.origins],
    }


def _operators(records: RunRecords, details: RunDetails) -> dict[str, Any] | None:
    """Seconds by class: of the whole run, and in each bin of the charts."""
    requests, iterations = records.requests, records.iterations
    if not len(iterations["start_s"]) or run_end_s(requests, iterations) <= 0:
        return None
    edges_s = chart_edges(requests, iterations)
    bins = Timeline.over({**iterations, **details.operators_s}, edges_s)
    names = list(details.operators_s)
    return {
        "edges_s": edges_s.tolist(),
        "seconds": {name: compact(bins.amount(name), 5) for name in names},
        "total_s": {name: float(details.operators_s[name].sum(dtype=np.float64)) for name in names},
    }


def _blocks(blocks: BlockTables) -> dict[str, Any]:
    return {
        "num_blocks": blocks.num_blocks,
        "block_size": blocks.block_size,
        "starts_s": [starts_s.tolist() for starts_s in blocks.starts_s],
        "ends_s": [ends_s.tolist() for ends_s in blocks.ends_s],
        "tables": [list(table) for table in blocks.tables],
        "holds": [list(hold) for hold in blocks.holds],
        "fills": [list(fill) for fill in blocks.fills],
        "idle": [list(span) for span in blocks.idle],
    }


def load_details(folder: Path | str) -> dict[str, Any] | None:
    """details.json of a run folder; None where there is none (an engine's run, an older folder).

    Raises ValueError, in one line, where the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(plain_file.read_text(path))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not JSON; delete it to do without its charts") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(
            f"{path}: not details of a run, version {VERSION}; delete it to do without"
        )
    return found

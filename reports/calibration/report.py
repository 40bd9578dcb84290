"""The page of a calibration: how good a measured latency table is, part by part."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.calibration import figures
from reports.calibration.figures import AXES, PARTS, Columns
from reports.page.page import Card, Figure, Row, Section, cards, escape, facts, page, panel, table
from reports.page.page import warning_box as warnings
from reports.run.report import FOOTER
from scenarios.quantity import MISSING, count, percent, plain, seconds
from scenarios.whole import write_whole
from sim.latency.table_data import PART_COLUMNS, LatencyTable
from sim.latency.table_folder import TableError, read_table

NUMBERS = ("time_us", "isolated_us", "spread_us", "takes", "repeats", "flops", "bytes")
WORST = 50  # held-out iterations in the table of those predicted worst


def write_calibration_report(folder: Path) -> Path:
    """Write report.html into a table's folder, whole or not at all.

    Raises TableError for a folder that is no measured table, OSError where it cannot be written.
    """
    text = calibration_report(folder)
    target = folder / "report.html"
    write_whole(target, text)
    return target


def calibration_report(folder: Path) -> str:
    """Build the page: HTML that needs nothing but a browser."""
    measured = read_table(folder)
    if measured.meta.get("measured_by") != "orcast calibrate":
        raise TableError(f"{folder}: was not measured by orcast calibrate run, there is no report")
    every = {name: _columns(folder, name) for name in PARTS if name in measured.parts}
    parts = {name: columns for name, columns in every.items() if columns["time_us"].size}
    meta = measured.meta
    sections = [
        _whole_section(folder),
        _parts_section(folder, meta, parts),
        _roofline_section(meta, parts),
        Section("spread", "Spread", [figures.spread(parts)]),
        *_fusion_section(meta),
        _setting_section(meta),
    ]
    return page(
        title=f"Calibration: {measured.source} · Orcast",
        top=_top(measured),
        sections=[section for section in sections if section is not None],
        footer=FOOTER,
    )


def _columns(folder: Path, name: str) -> Columns:
    """A part's coordinates and measurements by column, of points that take any time.

    A host that the device hides takes none: neither a logarithm nor a share of it can be drawn.
    """
    axes = [column for column in PART_COLUMNS[name] if column != "operation"]
    rows = _rows(folder / f"{name}.csv")
    missing = [column for column in NUMBERS if column not in rows[0]]
    if missing:
        raise TableError(f"{folder / f'{name}.csv'}:1: no column {missing[0]!r}")
    timed = [row for row in rows if float(row["time_us"]) > 0]
    return {column: np.array([float(row[column]) for row in timed]) for column in (*axes, *NUMBERS)}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _top(measured: LatencyTable) -> str:
    meta = measured.meta
    held_out = meta["whole_iterations"]["held_out"]
    verdict = "No whole iteration was held out: the table's error is not known."
    if held_out:
        verdict = (
            f"{held_out['count']} iterations of runs that the table has never seen are predicted "
            f"with a median error of {percent(held_out['median'])}, 95 % of them within "
            f"{percent(held_out['p95'])}."
        )
    return (
        '<header class="top"><p class="kind">Calibration</p>'
        f"<h1>{escape(str(meta['model']['name']))} on {escape(str(meta['gpu']))}</h1>"
        f'<p class="setting">{escape(measured.source)}</p>'
        f'<p class="verdict">{escape(verdict)}</p></header>'
        + warnings([str(text) for text in meta.get("warnings") or ()])
        + cards(list(_cards(meta)))
    )


def _cards(meta: Mapping[str, Any]) -> Iterator[Card]:
    whole = meta["whole_iterations"]
    held_out, alone = whole["held_out"], whole["sum_of_parts_alone"]
    if held_out:
        yield Card("Whole iterations", percent(held_out["median"]), "median error, held out")
        yield Card("95th percentile", percent(held_out["p95"]), f"bias {_signed(held_out['bias'])}")
    if alone:
        yield Card("Parts by themselves", _signed(alone["bias"]), "sum against whole, before fit")
    ceilings = meta["ceilings"]
    yield Card("Copy ceiling", _rate(ceilings["copy_tb_per_s"], "B/s"), "read plus written")
    yield Card("Product ceiling", _rate(ceilings["matrix_tflop_per_s"], "FLOP/s"), "measured")
    points = sum(part["points"] for part in meta["parts"].values())
    yield Card("Measured in", seconds(meta["duration_s"]), f"{count(points)} points")


def _whole_section(folder: Path) -> Section | None:
    rows = _rows(folder / "whole.csv")
    if not rows:
        return None
    names = {"1": ("Held out", "decode"), "0": ("Used for the fit", "waiting")}
    groups = {}
    for flag, (label, thing) in names.items():
        chosen = [row for row in rows if row["held_out"] == flag]
        if chosen:
            times = [
                np.array([float(row[key]) for row in chosen])
                for key in ("measured_us", "predicted_us")
            ]
            groups[label] = (thing, times[0], times[1])
    if not groups:
        return None
    parts: list[Figure | str] = [figures.parity("parity-whole", "Whole iterations", groups)]
    head = ("Batch", "Measured", "Predicted", "Error")
    body = []
    for row in rows:
        if row["held_out"] == "1":
            measured, predicted = (
                float(row[f"{key}_us"]) / 1e3 for key in ("measured", "predicted")
            )
            error = predicted / measured - 1
            cells = [_shape(row), f"{measured:.3f}", f"{predicted:.3f}", _signed(error)]
            body.append((abs(error), cells))
    if body:
        worst = [cells for _, cells in sorted(body, key=lambda one: -one[0])[:WORST]]
        inside = table(head, worst, caption="Held out (ms)")
        title = f"Of {count(len(body))} iterations held out, the {len(worst)} predicted worst"
        parts.append(panel(f"<details><summary>{title}</summary>{inside}</details>"))
    return Section(
        "whole",
        "Whole iterations against the sum of their parts",
        parts,
        "The engine serving random requests: every iteration as it came, the host's share "
        "included. Runs held out had no influence on the table.",
        link="Whole",
    )


def _shape(row: Mapping[str, str]) -> str:
    words = []
    if int(row["decodes"]):
        words.append(f"{row['decodes']} decodes, {int(row['context_tokens']):,} tokens of context")
    if int(row["prefills"]):
        words.append(f"{row['prefills']} prompts, {int(row['prefill_tokens']):,} new tokens")
    return "; ".join(words)


def _parts_section(folder: Path, meta: Mapping[str, Any], parts: Mapping[str, Columns]) -> Section:
    head = ("Part", "Points", "Takes", "Spread", "Held-out error", "p95", "In company", "Time")
    body = []
    for name, told in meta["parts"].items():
        error = told.get("held_out")
        title, source = PARTS[name][0], told.get("taken_over_from")
        if source:
            title += f" (from {source})"
        body.append(
            [
                title,
                count(told["points"]),
                count(told["takes"]),
                percent(told["spread_median"]),
                percent(error["median"]) if error else MISSING,
                percent(error["p95"]) if error else MISSING,
                f"× {told['in_company']:.3f}",
                seconds(told["duration_s"]) if told["duration_s"] else MISSING,
            ]
        )  # fmt: skip
    shown: list[str | Figure | Row] = [panel(table(head, body))]
    held_out: dict[str, list[dict[str, str]]] = {}
    for row in _rows(folder / "held_out.csv"):
        held_out.setdefault(row["part"], []).append(row)
    groups = {
        PARTS[name][0]: (
            PARTS[name][1],
            np.array([float(row["measured_us"]) for row in rows]),
            np.array([float(row["predicted_us"]) for row in rows]),
        )
        for name, rows in held_out.items()
    }
    if groups:
        shown.append(figures.parity("parity-parts", "Random points of each part, held out", groups))
    charts = tuple(
        figures.curves(name, columns, [axis for axis in AXES if axis in columns])
        for name, columns in parts.items()
        if name != "decode_skew"
    )
    shown += [Row(charts[at : at + 2]) for at in range(0, len(charts), 2)]
    return Section(
        "parts",
        "Parts",
        shown,
        "Times of the whole model. Held-out error: random points between those measured, looked "
        "up. In company: the factor by which a part takes longer among others than by itself, "
        "fitted to whole iterations; times in the table include it.",
    )


def _roofline_section(meta: Mapping[str, Any], parts: Mapping[str, Columns]) -> Section:
    ceilings = meta["ceilings"]
    copy, product = ceilings["copy_tb_per_s"], ceilings["matrix_tflop_per_s"]
    head = ("Part", "Best TFLOP/s", "of ceiling", "Best TB/s", "of ceiling")
    body = []
    for name, columns in parts.items():
        worked = columns["time_us"] > 0
        flops = float((columns["flops"][worked] / columns["time_us"][worked]).max()) / 1e6
        moved = float((columns["bytes"][worked] / columns["time_us"][worked]).max()) / 1e6
        if moved <= 0:
            continue
        body.append(
            [
                PARTS[name][0],
                plain(flops) if flops else MISSING,
                percent(flops / product) if flops else MISSING,
                plain(moved),
                percent(moved / copy),
            ]
        )
    computing = {name: columns for name, columns in parts.items() if name != "decode_skew"}
    return Section(
        "roofline",
        "Roofline",
        [figures.roofline(computing, copy, product), panel(table(head, body))],
        f"Ceilings as measured in the same run: {_rate(copy, 'B/s')} of a copy, read plus written; "
        f"{_rate(product, 'FLOP/s')} of a large square product.",
    )


def _fusion_section(meta: Mapping[str, Any]) -> list[Section]:
    shown: list[str | Figure | Row] = []
    charts: list[Figure] = []
    if meta.get("operator_classes"):
        on_gpu = meta["launch"] == "graph"
        charts.append(figures.operator_classes(meta["operator_classes"], on_gpu=on_gpu))
    rows: Sequence[Mapping[str, Any]] = meta.get("flash_against_standard") or ()
    if rows:
        charts.append(figures.flash(rows, on_gpu=meta["launch"] == "graph"))
    if charts:
        shown.append(Row(tuple(charts)))
    if rows:
        shown.append(panel(_flash_table(rows)))
    if meta.get("block_sizes"):
        shown.append(panel(_block_table(meta["block_sizes"])))
    return [Section("fusion", "What fusion buys", shown, link="Fusion")] if shown else []


def _flash_table(rows: Sequence[Mapping[str, Any]]) -> str:
    measured = "standard_bytes" in rows[0]
    head: tuple[str, ...] = ("Tokens", "Fused (µs)", "Standard (µs)", "Speed-up")
    head += ("Fused (MiB)", "Standard (MiB)", "Memory") if measured else ("Scores (MiB)",)
    body = []
    for row in rows:
        cells = [count(row["tokens"]), plain(row["flash_us"]), plain(row["standard_us"])]
        cells.append(f"{plain(row['speed_up'])} ×")
        if measured:
            fused, standard = row["flash_bytes"], row["standard_bytes"]
            cells += [plain(fused / 2**20), plain(standard / 2**20)]
            cells.append(f"{plain(standard / fused)} ×" if fused else MISSING)
        else:
            cells.append(plain(row["scores_bytes"] / 2**20))
        body.append(cells)
    caption = "Memory as measured" if measured else "Memory of the scores, computed"
    return table(head, body, caption=caption)


def _block_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("Block size", f"Decode {rows[0]['decodes']} (µs)", f"Prefill {rows[0]['prefill']} (µs)")
    body = [[count(r["block_size"]), plain(r["decode_us"]), plain(r["prefill_us"])] for r in rows]
    return table(head, body, caption="One layer's attention by block size of the cache")


def _setting_section(meta: Mapping[str, Any]) -> Section:
    told = [(str(key), str(value)) for key, value in meta["environment"].items()]
    told += [
        ("measured at", str(meta["measured_at"])),
        ("dtype", str(meta["dtype"])),
        ("block size", str(meta["block_size"])),
        ("launch", str(meta["launch"])),
        ("several prompts", str(meta["prefills"]).replace("_", " ")),
        ("limits", ", ".join(f"{key} {value:,}" for key, value in meta["limits"].items())),
    ]
    clocks = meta.get("clocks")
    if clocks:
        sm = clocks["sm_mhz"]
        told.append(
            (
                "SM clock (MHz)",
                f"{sm['median']:.0f} (median), {sm['min']:.0f} to {sm['max']:.0f}, limit "
                f"{sm['limit']:.0f}; {clocks['at_power_cap']} of {clocks['samples']} samples at "
                f"the power cap, {clocks['throttled']} throttled",
            )
        )
    host = meta.get("host_overhead_us")
    if host:
        told.append(
            (
                "host",
                f"{plain(host['per_iteration'])} µs an iteration and "
                f"{plain(host['per_sequence'])} µs a sequence",
            )
        )
    if meta.get("eager_launch_us"):
        told.append(("eager launch of a pass", f"{plain(meta['eager_launch_us'])} µs"))
    told += [("taken over", str(text)) for text in meta.get("taken_over") or ()]
    return Section("setting", "Measured on", [panel(facts(told))], link="Setting")


def _rate(tera: float, unit: str) -> str:
    """A rate given in 10^12 a second, with the prefix that reads best."""
    return f"{plain(tera)} T{unit}" if tera >= 1 else f"{plain(tera * 1e3)} G{unit}"


def _signed(share: float) -> str:
    return f"{share * 100:+.1f}\u00a0%"

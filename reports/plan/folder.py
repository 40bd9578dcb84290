"""The folder of a plan: written whole or not at all, read back, its report rebuilt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.plan.report import plan_report
from reports.plan.table import candidate_columns
from scenarios.whole import write_whole
from sim import plain_file

MARKER = "plan.json"  # what makes a folder a plan's
FILES = frozenset({MARKER, "scenario.yaml", "candidates.parquet", "report.html"})
FILES |= {"chosen.yaml", "kubernetes.yaml"}  # where something was chosen
FILES |= {"csv", "png", "svg"}  # exports


def write_plan(folder: Path, answer: Mapping[str, Any]) -> None:
    """plan.json, scenario.yaml (resolved), candidates.parquet, report.html; what to deploy, and
    that to be forecast again, where something was chosen."""
    import pyarrow.parquet as pq
    import yaml

    from reports.run.writer import arrow_table

    text = yaml.safe_dump(dict(answer["scenario"]), sort_keys=False, allow_unicode=True)
    (folder / "scenario.yaml").write_text(text, encoding="utf-8")
    deployed = answer["to_deploy"] or {}
    if deployed.get("scenario"):
        text = yaml.safe_dump(deployed["scenario"], sort_keys=False, allow_unicode=True)
        (folder / "chosen.yaml").write_text(text, encoding="utf-8")
    if deployed.get("kubernetes"):
        text = yaml.safe_dump_all(deployed["kubernetes"], sort_keys=False)
        (folder / "kubernetes.yaml").write_text(text, encoding="utf-8")
    whole = json.dumps(answer, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / MARKER).write_text(whole + "\n", encoding="utf-8")
    pq.write_table(arrow_table(candidate_columns(answer)), folder / "candidates.parquet")
    (folder / "report.html").write_text(plan_report(answer), encoding="utf-8")


def is_plan_folder(directory: Path | str) -> bool:
    return (Path(directory) / MARKER).is_file()


def load_plan(directory: Path | str) -> dict[str, Any]:
    """The answer of a plan's folder. Raises ValueError, in one line, where it is damaged."""
    path = Path(directory) / MARKER
    try:
        answer = json.loads(plain_file.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    needed = ("candidates", "objectives", "load", "chosen", "scenario")
    if not isinstance(answer, dict) or any(key not in answer for key in needed):
        raise ValueError(f"{path}: not a plan")
    return answer


def write_plan_report(directory: Path | str) -> Path:
    """(Re)build report.html of a plan's folder; a reader never sees half of it."""
    try:
        page = plan_report(load_plan(directory))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{Path(directory) / MARKER}: damaged ({error!r})") from None
    target = Path(directory) / "report.html"
    write_whole(target, page)
    return target

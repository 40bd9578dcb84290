"""The folder that a table is measured into: beside its final name until it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from calibrate.device.environment import CalibrationError

TABLE_FILES = ("meta.yaml", "report.html", "whole.csv", "held_out.csv", "png", "svg")


def partial_folder(out: Path) -> Path:
    """Where measurements are kept until the table is whole."""
    return out.with_name(f"{out.name}.partial")


def check_target(out: Path) -> None:
    """CalibrationError where ``out`` holds something that must not be replaced."""
    if out.exists() and not out.is_dir():
        raise CalibrationError(f"--out {out}: a file is in the way; name a folder")
    if not out.is_dir():
        return
    found = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    if found and "meta.yaml" not in found:
        raise CalibrationError(f"--out {out}: not empty and not a latency table; name another one")
    strangers = sorted(n for n in found if n not in TABLE_FILES and not n.endswith(".csv"))
    if strangers:
        raise CalibrationError(f"--out {out}: holds {strangers[0]}, which would be lost")


def put_in_place(partial: Path, out: Path) -> Path:
    """The finished folder takes its place; an older table of that name goes."""
    (partial / "journal.jsonl").unlink(missing_ok=True)
    old = out.with_name(f"{out.name}.old")
    if out.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out

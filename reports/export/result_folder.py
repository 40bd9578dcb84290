"""A folder of results of whatever kind: which, its page rebuilt, its page and tables for export."""

from collections.abc import Callable
from pathlib import Path

from reports.plan import folder as plan_folder
from reports.run.folder import FILES as RUN_FILES
from reports.run.folder import write_run_report
from reports.size import folder as size_folder
from reports.sweep import folder as sweep_folder

# kind: what tells it, what it is in words
KINDS = {
    "validation": "a validation",
    "plan": "a plan's folder",
    "size": "a sizing's folder",
    "sweep": "a sweep's folder",
    "table": "a latency table",
    "run": "a run folder",
}
TABLES = {
    "run": ("requests.parquet", "iterations.parquet", "preemptions.parquet"),
    "sweep": (sweep_folder.TABLE,),
    "plan": ("candidates.parquet",),
    "size": (size_folder.TABLE,),
}


def kind_of(folder: Path) -> str:
    """run, sweep, plan, size, table or validation. Raises ValueError for any other folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run folder: no such directory")
    found = {
        "validation": (folder / "validation.json").is_file(),
        "plan": plan_folder.is_plan_folder(folder),
        "size": size_folder.is_size_folder(folder),
        "sweep": sweep_folder.is_sweep(folder),
        "table": (folder / "meta.yaml").is_file(),
        "run": any((folder / name).is_file() for name in RUN_FILES),
    }
    for kind, there in found.items():
        if there:
            return kind
    raise ValueError(f"{folder} is not {', '.join(KINDS.values())}: none of their files is there")


def write_report(folder: Path) -> Path:
    """(Re)build report.html of a run's, sweep's, plan's or sizing's folder and return its path.

    Raises ValueError, in one line, for a folder that is none of these or is damaged.
    """
    write: Callable[[Path], Path] = write_run_report
    if sweep_folder.is_sweep(folder):
        write = sweep_folder.write_sweep_report
    elif size_folder.is_size_folder(folder):
        write = size_folder.write_size_report
    elif plan_folder.is_plan_folder(folder):
        write = plan_folder.write_plan_report
    return write(folder)


def tables_of(folder: Path) -> dict[str, Path]:
    """The Parquet files of a folder by name. Raises ValueError where it has none."""
    kind = kind_of(folder)
    if kind == "table":
        raise ValueError(f"{folder}: a latency table's parts are CSV files already")
    if kind == "validation":
        raise ValueError(f"{folder}: holds two runs; export {folder / 'measured'} or forecast")
    paths = {Path(name).stem: folder / name for name in TABLES[kind]}
    # Preemptions are an optional file.
    return {name: path for name, path in paths.items() if path.is_file() or name != "preemptions"}


def page_of(folder: Path) -> Path:
    """Its report. Raises ValueError, with the remedy, where that is not there."""
    kind_of(folder)
    path = folder / "report.html"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with: orcast report {folder}")
    return path

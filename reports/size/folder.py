"""The folder of a sizing: figures, tidy table, the model's config.json, the page."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from reports.run.writer import fresh_folder
from reports.size.report import size_report
from scenarios.whole import write_whole
from sim import plain_file

FIGURES = "sizing.json"  # what makes a folder one of ours
TABLE = "candidates.parquet"
PLAN = "plan.yaml"  # for `orcast plan`
FILES = frozenset({FIGURES, TABLE, PLAN, "sizing.yaml", "config.json", "report.html"})
FILES |= {"csv", "png", "svg"}  # exports


class Sized(Protocol):
    """A finished sizing."""

    @property
    def sizing(self) -> Any: ...
    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def rows(self) -> list[dict[str, Any]]: ...
    @property
    def config(self) -> dict[str, Any]: ...


def fresh_size_folder(target: Path) -> AbstractContextManager[Path]:
    """A folder that takes its place when the block ends well; see `reports.run.writer`."""
    models = {path.name for path in target.glob("sized-*.json")}  # a plan's model, by its name
    return fresh_folder(target, marker=FIGURES, files=FILES | models)


def write_size(folder: Path, sized: Sized) -> None:
    """sizing.yaml (resolved), sizing.json, candidates.parquet, config.json and report.html.

    Where the model can be served within objectives, also plan.yaml and the model it names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    def write(name: str, content: Mapping[str, Any]) -> None:
        if name.endswith(".json"):
            text = json.dumps(content, indent=2) + "\n"
        else:
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")

    write("sizing.yaml", sized.sizing.model_dump(mode="json"))
    write(FIGURES, sized.summary)
    write("config.json", sized.config)
    plan = sized.summary["plan"]
    if plan is not None:
        write(PLAN, plan)
        write(plan["model"], sized.config)
    pq.write_table(pa.Table.from_pylist(sized.rows), folder / TABLE)
    (folder / "report.html").write_text(size_report(sized.summary), encoding="utf-8")


def is_size_folder(path: Path) -> bool:
    """Whether `path` is what `orcast size --out` writes."""
    return (path / FIGURES).is_file()


def write_size_report(directory: Path) -> Path:
    """(Re)build report.html from sizing.json; its path. Raises ValueError for a damaged file."""
    source, target = directory / FIGURES, directory / "report.html"
    try:
        figures = json.loads(plain_file.read_text(source))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    if not isinstance(figures, Mapping):
        raise ValueError(f"{source}: expected a mapping, found {type(figures).__name__}")
    try:
        page = size_report(figures)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{source}: not a sizing's figures ({error!r})") from None
    write_whole(target, page)
    return target

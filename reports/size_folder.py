"""The folder of a sizing: figures, tidy table, the model's config.json, the page."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from reports.size_report import size_report
from reports.writer import fresh_folder

FIGURES = "sizing.json"  # what makes a folder one of ours
TABLE = "candidates.parquet"
FILES = frozenset({FIGURES, TABLE, "sizing.yaml", "config.json", "report.html"})


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
    """A folder that takes its place when the block ends well; see `reports.writer`."""
    return fresh_folder(target, marker=FIGURES, files=FILES)


def write_size(folder: Path, sized: Sized) -> None:
    """sizing.yaml (resolved), sizing.json, candidates.parquet, config.json and report.html."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    text = yaml.safe_dump(sized.sizing.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / "sizing.yaml").write_text(text, encoding="utf-8")
    (folder / FIGURES).write_text(json.dumps(sized.summary, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(sized.config, indent=2) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(sized.rows), folder / TABLE)
    (folder / "report.html").write_text(size_report(sized.summary), encoding="utf-8")


def is_size_folder(path: Path) -> bool:
    """Whether `path` is what `orcast size --out` writes."""
    return (path / FIGURES).is_file()


def write_size_report(directory: Path) -> Path:
    """(Re)build report.html from sizing.json; its path. Raises ValueError for a damaged file."""
    source, target = directory / FIGURES, directory / "report.html"
    try:
        figures = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    if not isinstance(figures, Mapping):
        raise ValueError(f"{source}: expected a mapping, found {type(figures).__name__}")
    try:
        page = size_report(figures)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{source}: not a sizing's figures ({error!r})") from None
    partial = target.with_name(".report.html.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target

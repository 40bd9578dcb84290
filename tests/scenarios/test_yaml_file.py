"""YAML of strangers: bounded, and refused in one line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scenarios.errors import InputError
from scenarios.yaml_file import LARGEST, read_yaml


def refused(path: Path) -> str:
    started_s = time.process_time()
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert time.process_time() - started_s < 5.0
    text = str(caught.value)
    assert str(path) in text and len(text.replace(str(path), "")) < 300 and "\n" not in text
    return text


def test_aliases_are_counted_before_they_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))
    assert "its aliases stand for over 1,000,000 values" in refused(path)
    path.write_text("a: &a [1, *a]\n")
    assert "its aliases" in refused(path)
    path.write_text("a: &a [1, 2]\nb: *a\nc: {<<: {x: 1}, y: *a}\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [1, 2], "c": {"x": 1, "y": [1, 2]}}


@pytest.mark.parametrize(
    "text",
    ["!!timestamp x", "!!int x", "!!float {}", "!!binary 7", "!!python/object:os.system x",
     "!!set [1]", "!!omap {a: 1}", "!!pairs 3", "? {a: 1}\n: 2", "!!timestamp 2024-13-45",
     "a: !!null b: c"],
)  # fmt: skip
def test_odd_tags_are_refused_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"name: {text}\n" if not text.startswith("?") else text)
    assert "not valid YAML" in refused(path)


def test_many_keys_are_read_in_linear_time_and_twice_is_once_too_often(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("\n".join(f"k{n}: {n}" for n in range(20_000)))
    started_s = time.process_time()
    assert len(read_yaml(path)) == 20_000
    assert time.process_time() - started_s < 5.0
    path.write_text("a: 1\nb: 2\na: 3\n")
    assert "the key 'a' is given twice" in refused(path)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    assert "50 MB, at most 50 are read" in refused(large)
    assert "Is a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")

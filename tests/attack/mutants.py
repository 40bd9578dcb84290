"""``python -m tests.attack.mutants sim/kv/cache.py tests/sim/kv/test_cache.py``: do tests notice?

A mutant is the file with one thing changed: a comparison, an operator of arithmetic or logic, a
number, a condition turned round, a statement left out. It is killed where a test fails (or does not
end). ``--count 50 --seed 1`` draws so many of all; every one runs in a fork that imports the mutant
in the file's place, so nothing on disk changes.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import numpy  # noqa: F401 - imported once, before the forks
import pytest

LONGEST_S = 120
OTHER: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult},
    **{ast.Div: ast.Mult, ast.Mod: ast.FloorDiv},
}


def _spots(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every place where a mutant differs: the number of its node, and how."""
    for number, node in enumerate(ast.walk(tree)):
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in OTHER:
                yield number, "comparison"
            case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OTHER:
                yield number, "arithmetic"
            case ast.BoolOp():
                yield number, "logic"
            case ast.Constant(value=int() | float()):
                yield number, "number"
            case ast.If() | ast.While() | ast.IfExp():
                yield number, "condition"
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                yield number, "left out"


def _mutated(tree: ast.Module, number: int, how: str) -> tuple[ast.Module, int]:
    """A copy of the tree with one change, and its line."""
    changed = copy.deepcopy(tree)
    node: Any = next(one for at, one in enumerate(ast.walk(changed)) if at == number)
    if how == "comparison":
        node.ops = [OTHER[type(node.ops[0])]()]
    elif how in ("arithmetic", "logic"):
        node.op = OTHER[type(node.op)]()
    elif how == "number":
        value = node.value
        node.value = (not value) if isinstance(value, bool) else value + 1
    elif how == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        for holder in ast.walk(changed):
            for body in (getattr(holder, "body", None), getattr(holder, "orelse", None)):
                if isinstance(body, list) and node in body:
                    body[body.index(node)] = ast.Pass()
    return ast.fix_missing_locations(changed), node.lineno


def _is_killed(file: Path, tree: ast.Module, tests: list[str]) -> bool:
    child = os.fork()
    if child == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.alarm(LONGEST_S)
        right = importlib.machinery.SourceFileLoader.get_code

        def code(self: Any, name: str) -> Any:
            if Path(self.path).resolve() == file:
                return compile(tree, str(file), "exec")
            return right(self, name)

        importlib.machinery.SourceFileLoader.get_code = code  # type: ignore[method-assign]
        hypothesis.settings.register_profile("mutants", derandomize=True, database=None)
        hypothesis.settings.load_profile("mutants")
        status = 1
        try:
            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        finally:
            os._exit(int(status))
    _, status = os.waitpid(child, 0)
    return status != 0


def main() -> int:
    """Prints who survived; exit status 1 where the tests fail without any change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    file = asked.file.resolve()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if _is_killed(file, tree, asked.tests):
        print("the tests fail as it is")
        return 1
    spots = list(_spots(tree))
    drawn = Random(asked.seed).sample(spots, min(asked.count, len(spots)))
    killed: Counter[bool] = Counter()
    for number, how in drawn:
        changed, line = _mutated(tree, number, how)
        found = _is_killed(file, changed, asked.tests)
        killed[found] += 1
        if not found:
            print(f"{asked.file}:{line}: {how} survived", flush=True)
    print(f"{asked.file}: {killed[True]} of {len(drawn)} mutants killed, {len(spots)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

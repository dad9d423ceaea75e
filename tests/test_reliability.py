"""docs/reliability.md is true: every fault has tests that are there, and the first of them names it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/reliability.md"
#: What may happen, as the protocol's own table has it, and two that no single trainer's stream sees.
FAULTS = {
    "engine child dies",
    "engine hangs",
    "whole trainer dies",
    "half-open TCP",
    "gateway dies mid-tune",
    "result sent twice",
    "result of a lost lease",
    "cancel races completion",
    "cancel by another replica",
    "database away",
    "object store away",
    "the same tune kills trainers",
    "spot notice",
    "disk full, bad download",
    "damaged snapshot",
    "a trainer lies",
    "everything dies",
}


def table() -> dict[str, list[str]]:
    """Fault -> its tests, out of the page."""
    section = PAGE.read_text().split("## Each fault")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "::" in line]
    return {fault: re.findall(r"`([^`]+::[^`]+)`", tests) for fault, _, tests in rows}


@cache
def docstrings(path: str) -> dict[str, str]:
    """Test -> what it says of itself, of one file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.parse((TESTS / path).read_text()).body
    return {node.name: ast.get_docstring(node) or "" for node in nodes if isinstance(node, functions)}


def test_every_fault_has_its_row() -> None:
    assert table().keys() == FAULTS


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_tests_of_a_fault_are_there_and_the_first_names_it(fault: str) -> None:
    named = [test.split("::") for test in table()[fault]]

    missing = [name for path, name in named if name not in docstrings(path)]
    path, first = named[0]

    assert missing == []
    assert fault.lower() in docstrings(path)[first].lower()

"""A short chaos run on each database: nothing promised is broken, and enough was disturbed to say so."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: What callers may do at any time is no fault.
ACTS = ("cancel", "duplicate_create")


def chaos(*arguments: str) -> dict[str, Any]:
    """The report of a run with a seed of its own, which must have found nothing."""
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(seed), *arguments]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    print(ended.stderr)
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, report["violations"]) == (0, [])
    return report


def disturbances(report: dict[str, Any]) -> int:
    return sum(count for kind, count in report["faults"].items() if kind not in ACTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_faults_breaks_no_promise() -> None:
    report = chaos("--seconds", "60")

    assert disturbances(report) >= 15
    assert report["resumed"] >= 3
    assert report["twins_compared"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_a_minute_on_sqlite_breaks_none_either() -> None:
    report = chaos("--seconds", "30", "--database", "sqlite", "--gateways", "1", "--trainers", "2")

    assert disturbances(report) >= 7
    assert report["twins_compared"] >= 1

"""A figure, its spread and its bar. Called by `scripts/bench quality`; pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.basics.spread import spread


@dataclass(frozen=True)
class Bar:
    """What the mean of a figure over the seeds must reach, or must not exceed."""

    limit: float
    """In the figure's own unit; all of them are shares or ratios."""
    upper: bool = False
    """Whether the figure must stay at or below it."""

    def passed(self, value: float) -> bool:
        """A figure that is no number passes no bar."""
        return value <= self.limit if self.upper else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.upper else '>='} {self.limit:g}"


def beside(values: Sequence[float], bar: Bar) -> dict[str, Any]:
    """Mean and spread of one value a seed, the bar, and whether the mean passes it."""
    mean = statistics.fmean(values)
    return {"mean": round(mean, 3), **spread(values), "bar": str(bar), "passed": bar.passed(mean)}


def all_passed(figures: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether each of them has."""
    return all(figure["passed"] for figure in figures.values())


def kept(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What is left of each share, as a ratio. Nothing can be lost of what was not there: that counts as kept."""
    return {name: after[name] / share if share > 0 else 1.0 for name, share in before.items()}

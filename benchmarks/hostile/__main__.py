"""`scripts/bench hostile [--seconds N] [--rate N] [--seed N]`: a minute of hostile requests beside a running tune.
Prints the figures as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.basics.__main__ import end_by_sigterm, machine
from benchmarks.basics.spread import spread
from benchmarks.hostile.scene import Seen, play
from tests.servers.photographs import photographs
from tests.servers.service import Service


def main() -> None:
    """Runs it once."""
    parser = argparse.ArgumentParser(prog="scripts/bench hostile")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    end_by_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs(Path(folder))
        with Service(Path(folder) / "service") as service, service.client() as client:
            load = {"rate": arguments.rate, "seconds": arguments.seconds, "seed": arguments.seed}
            seen = asyncio.run(play(service, client, pictures[0], **load))
    print(json.dumps({"machine": machine(), "asked": load, **figures(seen)}, indent=2))


def figures(seen: Seen) -> dict[str, Any]:
    """The figures of docs/benchmarks.md."""
    third = max(len(seen.memory) // 3, 1)
    first, last = (statistics.median(part) for part in (seen.memory[:third], seen.memory[-third:]))
    answered = [1000 * seconds for seconds in seen.load["seconds"]]
    return {
        "requests": sum(sum(found.values()) for found in seen.load["statuses"].values()),
        "sent_late": seen.load["late"],
        "statuses": seen.load["statuses"],
        "not_as_documented": seen.load["unexpected"],
        "answers_of_500_and_above": seen.answers(500),
        "answer_ms": {**spread(answered, 1), "p99": round(percentile(answered, 99), 1)},
        "heartbeat_ack_ms": _acks(seen.beats.milliseconds),
        "heartbeat_ack_ms_without_load": _acks(seen.quiet_beats.milliseconds),
        "leases_not_extended": seen.beats.lost,
        "gateway_memory_mb": spread(seen.memory, 1),
        "gateway_memory_growth_mb": round(last - first, 1),  # from the first third of the time to its last
        "gateway_memory_mb_by_tenth": tenths(seen.memory),
        "judge_memory_mb_most": round(max(seen.judges), 1),
        "steps_trained_meanwhile": seen.steps[1] - seen.steps[0],
        "attempts_of_the_tune": sorted(seen.attempts),
    }


def tenths(values: list[float]) -> list[float]:
    """Means of the first tenth to the last: whether what grows comes to rest."""
    bounds = [len(values) * part // 10 for part in range(11)]
    return [round(statistics.mean(values[start:end]), 1) for start, end in pairwise(bounds) if end > start]


def percentile(values: list[float], which: int) -> float:
    """The value that so many in a hundred do not exceed."""
    return sorted(values)[min(len(values) * which // 100, len(values) - 1)]


def _acks(milliseconds: list[float]) -> dict[str, float | int]:
    return {**spread(milliseconds, 1), "p99": round(percentile(milliseconds, 99), 1)}


if __name__ == "__main__":
    main()

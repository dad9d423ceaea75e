"""`scripts/bench basics [--only NAME] [--quick]`: runs each part in turn and prints one JSON object. Knows only which
parts there are."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from benchmarks.basics import creation, footprint, latency, recovery, training, uploads, wakeups

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "training": training.measure,
    "latency": latency.measure,
    "creation": creation.measure,
    "wakeups": wakeups.measure,
    "recovery": recovery.measure,
    "footprint": footprint.measure,
    "uploads": uploads.measure,
}


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench basics")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be given several times")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats: to see that it runs")
    arguments = parser.parse_args()
    end_by_sigterm()
    figures: dict[str, Any] = {"machine": machine()}
    for name in arguments.only or PARTS:
        print(f"bench: {name}", file=sys.stderr)
        figures[name] = PARTS[name](arguments.quick)
    print(json.dumps(figures, indent=2))


def end_by_sigterm() -> None:
    """SIGTERM ends us as an exit does: with every service that was started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()

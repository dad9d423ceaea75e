"""`scripts/chaos`: one chaos run. Its last line on standard output is the report, one JSON object.

Exit codes: 0 all is as promised, 1 a promise was broken; then the run's folder is kept, with every process's log.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import structlog

from tests.chaos.run import Plan, run


def main() -> int:
    """Runs it, prints the report, returns the exit code."""
    given = _arguments()
    plan = Plan(given.seconds, given.seed, given.gateways, given.trainers, given.database)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that nothing is left running
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-chaos-"))
    print(f"chaos: seed {plan.seed}, in {folder}", file=sys.stderr)
    report = run(plan, folder)
    for violation in report["violations"]:
        print(f"chaos: VIOLATION: {violation}", file=sys.stderr)
    if report["violations"] or given.keep:
        print(f"chaos: logs, database and objects stay in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report))
    return 1 if report["violations"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Breaks a running service, and looks what it kept."
    )
    parser.add_argument("--seconds", type=_more_than_none, default=60.0, help="that faults strike (60)")
    parser.add_argument("--seed", type=int, required=True, help="of all that is left to chance")
    parser.add_argument("--gateways", type=_at_least_one, default=2, help="(2)")
    parser.add_argument("--trainers", type=_at_least_one, default=3, help="(3)")
    parser.add_argument("--keep", action="store_true", help="keep the folder, also where all is well")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql", help="(postgresql)")
    given = parser.parse_args()
    if given.database == "sqlite" and given.gateways > 1:
        parser.error("SQLite is for one gateway: --gateways 1")
    return given


def _at_least_one(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no whole number from 1 on")
    return int(given)


def _more_than_none(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{given!r} is no number of seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())

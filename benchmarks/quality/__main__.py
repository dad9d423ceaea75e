"""`scripts/bench quality [--quick] [--example NAME] [--seeds 0 1 2]`: teaches each example through the service, asks
what was learned, and prints one JSON object. Writes a sheet of samples for each, so that a person can look. Knows only
who does what."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.basics.__main__ import end_by_sigterm, machine
from benchmarks.quality import judge, obedience
from benchmarks.quality.examination import QUICK, Effort, Examiner
from benchmarks.quality.figures import Bar, beside
from benchmarks.quality.subjects import SUBJECTS
from benchmarks.quality.tuning import Taught, teach
from tests.servers.service import Service
from trainer.bases import tiny_shapes


def main() -> None:
    """Teaches, examines, prints."""
    wanted = arguments()
    end_by_sigterm()
    logging.disable(logging.WARNING)
    torch.set_num_threads(wanted.threads)
    effort = QUICK if wanted.quick else Effort(steps=wanted.steps)
    out = wanted.out or Path(tempfile.mkdtemp(prefix="quality-"))
    out.mkdir(parents=True, exist_ok=True)
    print(f"bench: sheets and LoRAs go to {out}", file=sys.stderr)
    tunes = taught(wanted.example or list(SUBJECTS), wanted.seeds, effort, out)
    print("bench: judge", file=sys.stderr)
    judging = judge.load_or_train(wanted.judges / "judge.pt") if wanted.judges else judge.train()
    examiner = Examiner(obedience.load(tiny_shapes.path()), judging, effort, wanted.judges)
    right = judge.accuracy(judging)
    figures: dict[str, Any] = {
        "machine": machine(),
        "base": tiny_shapes.sha256(),
        "effort": vars(effort) | {"sampler_steps": obedience.STEPS, "guidance": obedience.GUIDANCE},
        "judge_right_on_drawn": beside([min(right.values())], Bar(obedience.JUDGE_BAR)) | {"questions": right},
    }
    for name, made in tunes.items():
        print(f"bench: {name}", file=sys.stderr)
        figures[name] = examiner.examine(SUBJECTS[name], made, out)
    figures["passed"] = all(figures[name]["passed"] for name in ("judge_right_on_drawn", *tunes))
    print(json.dumps(figures, indent=2))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench quality", description=__doc__)
    parser.add_argument("--example", choices=SUBJECTS, action="append", help="one of them; may be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one tune and its samples for each")
    parser.add_argument("--steps", type=int, help="of each tune; what its example wants, if not given")
    parser.add_argument("--out", type=Path, help="folder for sheets and LoRAs; a new temporary one if not given")
    parser.add_argument("--judges", type=Path, help="folder where trained judges are kept; otherwise trained afresh")
    parser.add_argument("--quick", action="store_true", help="too little of everything: to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="for judging and sampling")
    return parser.parse_args()


def taught(names: list[str], seeds: list[int], effort: Effort, out: Path) -> dict[str, list[Taught]]:
    """The tunes of each subject, all through one service."""
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service, service.client() as client:
        made = {}
        for name in names:
            print(f"bench: tunes of {name}", file=sys.stderr)
            made[name] = teach(client, SUBJECTS[name], seeds, effort.steps or SUBJECTS[name].steps, out)
        return made


if __name__ == "__main__":
    main()

"""schemathesis against the served document: all checks, so no 5xx, no undocumented status, nothing refused that the
document allows, and nothing accepted that it forbids."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import photographs
from tests.servers.service import Client

HERE = Path(__file__).parent
SEED = int(os.environ.get("TUNESMITH_SEED", "1"))
LIMIT = 540  # seconds; it takes one minute on two free cores
EXAMPLES = int(os.environ.get("TUNESMITH_EXAMPLES", "5"))  # of each operation and phase


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 60)
def test_schemathesis_finds_no_fault(url: str, key_of: Callable[..., str], tmp_path: Path) -> None:
    key = key_of("fuzzed")
    with Client(url, key) as client:
        file_id = client.upload(photographs.photographs(tmp_path)[0], name="kept-for-tunes")
    environment = {
        **os.environ,
        "TUNESMITH_KEY": key,
        "TUNESMITH_FILE": file_id,
        "TUNESMITH_FILE_NAME": "kept-for-tunes",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "SCHEMATHESIS_HOOKS": "tests.contract.schemathesis_hooks",
    }

    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"]
    run = subprocess.run(
        [*command, f"{url}/openapi.json", "--checks", "all", "--seed", str(SEED), "--max-examples", str(EXAMPLES)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )

    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
    generated = re.search(r"([\d,]+) generated", run.stdout)
    assert generated is not None
    assert int(generated[1].replace(",", "")) > 500, "it has asked next to nothing"

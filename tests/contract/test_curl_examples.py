"""The curl examples of docs/api.md, run as they stand there, in their order, by the real curl."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import photographs
from tests.servers.contract import Contract

PAGE = Path(__file__).parents[2] / "docs/api.md"
# What a test wants of curl and a reader does not: fail on an error status, and tell what was asked and answered.
CURLRC = 'fail-with-body\nsilent\nshow-error\nmax-time = 60\nwrite-out = "%{stderr}%{http_code} %{method} %{url}\\n"\n'


def examples() -> str:
    """The page's shell blocks, as one script that stops at the first fault."""
    return "set -euo pipefail\n" + "\n".join(
        re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    )


def test_every_endpoint_has_an_example_that_works(
    url: str, key_of: Callable[..., str], contract: Contract, tmp_path: Path
) -> None:
    (tmp_path / ".curlrc").write_text(CURLRC)
    rocket = photographs.photographs(tmp_path)[2]
    rocket.rename(tmp_path / "cat.jpg")
    environment = {**os.environ, "CURL_HOME": str(tmp_path), "TUNESMITH_URL": url, "TUNESMITH_KEY": key_of("reader")}

    run = subprocess.run(
        ["bash", "-c", examples()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    asked = re.findall(r"^(\d{3}) (\w+) (\S+)$", run.stderr, re.MULTILINE)
    found = [contract.operation(urlsplit(target).path, verb) for _, verb, target in asked]
    assert None not in found
    assert {operation["operationId"] for operation in found if operation} == contract.operations().keys()
    assert {status for status, _, _ in asked} == {"200", "201"}
    assert (tmp_path / "again.jpg").read_bytes() == (tmp_path / "cat.jpg").read_bytes()
    assert json.loads((tmp_path / "openapi.json").read_text()) == contract.document
    assert "event: end" in run.stdout  # the stream was told to its end
    assert '"status":"cancelled"' in run.stdout


def test_page_has_no_example_that_is_not_run() -> None:
    """Only in shell blocks is curl shown here, so that each is run."""
    prose = re.sub(r"^```sh\n.*?^```$", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)

    assert not re.search(r"^\s*curl ", prose, re.MULTILINE)

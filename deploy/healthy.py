#!/usr/bin/env python3
"""Asks the process of this container whether it is well: `healthy VARIABLE PATH [LINE]`. Called by HEALTHCHECK and by
probes; knows nothing of what is asked for.

VARIABLE holds HOST:PORT, as TUNESMITH_HTTP does; PATH has to answer 200, and with LINE, a line of the answer has to be
that. Exit code 0: well. 1: not; why is on standard error. The images have no curl, so that nobody who breaks in has it.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT = 3.0  # seconds; HEALTHCHECK's own is longer, so that the reason is still printed
HERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  (compared, not bound)


def fault(variable: str, path: str, line: str | None = None) -> str:
    """What is wrong; empty where nothing is."""
    host, _, port = os.environ.get(variable, "").rpartition(":")
    if not host:
        return f"{variable} does not say HOST:PORT"
    connection = http.client.HTTPConnection(f"{HERE.get(host, host)}:{port}", timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return f"{host}:{port}{path}: {error}"
    finally:
        connection.close()
    if response.status != 200:
        return f"{path} answers {response.status}: {body[:500]}"
    if line is not None and line not in body.splitlines():
        return f"{path} has no line {line!r}"
    return ""


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: healthy VARIABLE PATH [LINE]")
    sys.exit(fault(*sys.argv[1:]) or 0)

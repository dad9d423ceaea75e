"""The processes that `tunesmith up` keeps running: none of them outlives it."""

from __future__ import annotations

import subprocess
import sys

#: A parent that dies before its child has asked the kernel to be told of that.
ORPHAN = """
import os, time
from gateway.cli.children import _die_with_parent

parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
print("orphaned", flush=True)
_die_with_parent(parent)
print("lives on", flush=True)
"""


def test_child_whose_parent_died_before_it_asked_for_the_signal_ends_at_once() -> None:
    # Returns when the orphan too has closed its standard output: when it has ended.
    ended = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=True, timeout=60)

    assert ended.stdout == "orphaned\n"

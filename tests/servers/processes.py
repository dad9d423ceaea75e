"""What /proc tells of a process."""

from __future__ import annotations

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # per second


def children(pid: int) -> set[int]:
    """Ids of the processes right below one."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for path in tasks for child in path.read_text().split()}


def descendants(pid: int) -> set[int]:
    """Ids of all processes below one."""
    below = children(pid)
    return below.union(*(descendants(child) for child in below))


def memory_bytes(pid: int) -> int:
    """Resident memory."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most that this has been since the process began."""
    return _status(pid, "VmHWM")


def cpu_seconds(pid: int) -> float:
    """Processor time so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _status(pid: int, name: str) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024

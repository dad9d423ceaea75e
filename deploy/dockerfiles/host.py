"""What is asked of this machine: commands, mounts, namespaces. Called by its neighbours; knows nothing of images."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000  # linux/sched.h
SIOCSIFFLAGS = 0x8914  # linux/sockios.h
IFF_UP, IFF_RUNNING = 0x1, 0x40  # linux/if.h

_libc = ctypes.CDLL(None, use_errno=True)


class HostError(Exception):
    """A command of this machine failed, or it lacks one."""


def run(*arguments: str) -> None:
    """Runs a command to its end.

    Raises:
        HostError: It failed; what it said is in the message.
    """
    output(*arguments)


def output(*arguments: str) -> str:
    """Runs a command to its end and returns what it printed."""
    try:
        # Words from this folder and from Dockerfiles of this repository, never through a shell.
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise HostError(f"{arguments[0]} is not installed here") from error
    if done.returncode:
        raise HostError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def start(arguments: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts a command; what it says goes to the log, or to the terminal."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(  # noqa: S603  (as in output)
            arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
        )


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still are."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def leave_network() -> None:
    """From now on this process and those it starts have a network of their own: a loopback, and nothing beyond it."""
    if _libc.unshare(CLONE_NEWNET):
        raise HostError(f"a network of its own was refused: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


@contextlib.contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    """Mounts on an existing folder or file; unmounts at the end."""
    run("mount", *arguments, str(target))
    try:
        yield
    finally:
        # Lazily: a stray file still open in there must not keep the rest from being cleaned up.
        run("umount", "--lazy", str(target))


def size(folder: Path) -> int:
    """Bytes on the disk below a folder, hard links counted once."""
    return int(output("du", "--summarize", "--one-file-system", "--block-size=1", str(folder)).split()[0])

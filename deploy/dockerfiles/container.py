"""Runs an image's command as Docker would: its user, its variables, a root that cannot be written, its volumes; waits
for its health, and stops it with its signal. Called by __main__; knows nothing of how the image was made."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.dockerfiles import host, room
from deploy.dockerfiles.build import Image
from deploy.dockerfiles.room import Room, User


class ContainerError(Exception):
    """A container did not start, did not become healthy, or did not stop as it should."""


@dataclass(frozen=True)
class Container:
    """A running image. Its processes are numbered from 1, and end when that one does."""

    name: str
    image: Image
    user: User
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    """By the monotonic clock."""

    def wait_healthy(self) -> float:
        """Runs the health check until it passes; returns the seconds since the start.

        Raises:
            ContainerError: The process has ended, or Docker would call it unhealthy by now.
        """
        check = self.image.healthcheck
        if check is None:
            raise ContainerError(f"{self.name} has no HEALTHCHECK")
        deadline = self.started + check.start_period + check.retries * check.interval
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise ContainerError(f"{self.name} has ended with {code}:\n{self.tail()}")
            if self.execute(check.command, check.timeout) == 0:
                return time.monotonic() - self.started
            time.sleep(0.2)  # Docker waits start_interval; only the figure printed would be coarser
        raise ContainerError(f"{self.name} was not healthy in time:\n{self.tail()}")

    def execute(self, command: tuple[str, ...], timeout: float, log: Path | None = None) -> int:
        """Runs a command beside the container's own, as `docker exec` does; returns its exit code."""
        pid = room.inside_pid(self.process)
        if pid is None:
            return 1
        beside = room.enter(pid, command, self.user, self.image.folder)
        process = host.start(beside, self.environment, log or self.log.with_name("probes"))
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 1

    def memory_bytes(self) -> int:
        """Resident memory of all its processes."""
        first = room.inside_pid(self.process)
        return sum(_resident_bytes(pid) for pid in _family(first)) if first is not None else 0

    def real_user(self) -> int:
        """The user id that the kernel knows the first process by."""
        pid = room.inside_pid(self.process)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[1])
        raise ContainerError(f"{self.name} is not running")

    def stop(self, grace: float) -> tuple[int, float]:
        """Sends STOPSIGNAL; returns the exit code and the seconds it took.

        Raises:
            ContainerError: It was not gone within the grace time.
        """
        start = time.monotonic()
        pid = room.inside_pid(self.process)
        if pid is not None:
            host.run("kill", f"-{self.image.stop_signal.removeprefix('SIG')}", str(pid))
        try:
            return self.process.wait(grace), time.monotonic() - start
        except subprocess.TimeoutExpired:
            raise ContainerError(
                f"{self.name} did not end within {grace:g} s of {self.image.stop_signal}:\n{self.tail()}"
            ) from None

    def tail(self) -> str:
        """The end of what it has said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@contextlib.contextmanager
def running(name: str, image: Image, environment: Mapping[str, str], scratch: Path) -> Iterator[Container]:
    """Starts an image's command; kills it at the end if it still runs."""
    with room.read_only(scratch, image.layers) as inside, contextlib.ExitStack() as stack:
        for number, volume in enumerate(image.volumes):
            stack.enter_context(
                inside.bound(_fresh(inside, volume, scratch / f"volume-{number}"), volume, writable=True)
            )
        user = inside.user(image.user)
        whole = {"HOME": user.home, **image.environment, **environment}
        log = scratch / "log"
        started = time.monotonic()
        process = inside.start((*image.entrypoint, *image.arguments), whole, user, image.folder, log)
        container = Container(name, image, user, whole, process, log, started)
        try:
            yield container
        finally:
            room.end(process)


def _fresh(inside: Room, volume: str, folder: Path) -> Path:
    """A new volume starts as a copy of what the image has there, owner and mode included."""
    shutil.copytree(inside.inside(volume), folder, symlinks=True)
    owner = inside.inside(volume).stat()
    shutil.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def _family(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [pid, *(below for child in host.children(pid) for below in _family(child))]
    return []


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0

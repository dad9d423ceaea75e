"""A root file system to run commands in, as Docker runs them: its own processes, /dev and /proc, no way to more rights.
Called by base, build and container; knows nothing of Dockerfiles."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.dockerfiles import host

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # what Docker gives an image without one
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@dataclass(frozen=True)
class User:
    """Who a command runs as."""

    uid: int
    gid: int
    home: str


class RoomError(Exception):
    """A path or a user is not to be found in there."""


@dataclass(frozen=True)
class Room:
    """A mounted root.

    A command is the first process of a process namespace, as in a container: signals that it does not handle do
    nothing, and all that it has started ends with it.
    """

    root: Path

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], user: User, folder: str, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command. The process returned waits outside; `inside_pid` finds the command's own."""
        program = [
            _program("setpriv"),
            "--no-new-privs",
            _program("unshare"),
            *("--pid", "--fork", "--kill-child=KILL", "--mount-proc", f"--root={self.root}", f"--wd={folder}"),
            *(f"--setgid={user.gid}", f"--setuid={user.uid}", "--"),
        ]
        return host.start([*program, *command], {"HOME": user.home, "PATH": PATH, **environment}, log)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], user: User, folder: str, log: Path | None = None
    ) -> None:
        """Runs a command to its end.

        Raises:
            RoomError: It failed; the end of the log, where there is one, is in the message.
        """
        process = self.start(command, environment, user, folder, log)
        try:
            code = process.wait()
        finally:
            end(process)
        if code:
            said = log.read_text(errors="replace").splitlines()[-40:] if log else []
            raise RoomError("\n".join([f"exit code {code} of: {' '.join(command)}", *said]))

    def user(self, text: str) -> User:
        """Reads USER: "10001:10001", "10001", "name" or "name:group"; what it leaves open stands in /etc/passwd."""
        name, _, group = text.partition(":")
        for line in self.inside("/etc/passwd").read_text().splitlines():
            login, _, uid, gid, _, home, _ = line.split(":")
            if name in (login, uid):
                return User(int(uid), self._gid(group) if group else int(gid), home)
        if name.isdigit():
            return User(int(name), int(group or 0), "/")
        raise RoomError(f"USER {text}: there is no such user in the image")

    def _gid(self, group: str) -> int:
        for line in self.inside("/etc/group").read_text().splitlines():
            name, _, gid, _ = line.split(":")
            if group in (name, gid):
                return int(gid)
        raise RoomError(f"USER ...:{group}: there is no such group in the image")

    def inside(self, path: str) -> Path:
        """Where a path of the image lies on this machine. Its links are followed within the image, never out of it."""
        at = PurePosixPath("/")
        rest = list(PurePosixPath(path).parts)
        links = 0
        while rest:
            part = rest.pop(0)
            if part in ("/", ".."):
                at = PurePosixPath("/") if part == "/" else at.parent
                continue
            here = self.root / at.relative_to("/") / part
            if here.is_symlink():
                links += 1
                if links > 40:  # what the kernel allows
                    raise RoomError(f"{path} is a circle of links")
                rest = [*PurePosixPath(here.readlink()).parts, *rest]
            else:
                at = at / part
        return self.root / at.relative_to("/")

    @contextlib.contextmanager
    def bound(self, source: Path, target: str, *, writable: bool = False) -> Iterator[None]:
        """Shows a file or folder of this machine in the room. What had to be made to mount it on goes again."""
        place = self.inside(target)
        made = _made_for(source, place)
        try:
            with host.mounted(place, "--bind", str(source)):
                if not writable:
                    host.run("mount", "-o", "remount,bind,ro", str(place))
                yield
        finally:
            for path in made:
                path.rmdir() if path.is_dir() else path.unlink()


@contextlib.contextmanager
def overlay(scratch: Path, layers: Sequence[Path]) -> Iterator[tuple[Room, Path]]:
    """A room on top of layers, the newest first; what is written in there is gathered in the folder returned."""
    root, upper, work = (scratch / name for name in ("root", "layer", "work"))
    for folder in (root, upper, work):
        folder.mkdir(parents=True)
    lower = ":".join(str(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with host.mounted(root, "-t", "overlay", "overlay", "-o", options), devices(root):
        yield Room(root), upper


@contextlib.contextmanager
def read_only(scratch: Path, layers: Sequence[Path]) -> Iterator[Room]:
    """A room that cannot be written, as with `docker run --read-only`: /tmp and volumes are mounted onto it."""
    root = scratch / "root"
    root.mkdir(parents=True)
    options = "lowerdir=" + ":".join(str(layer) for layer in layers)
    with (
        host.mounted(root, "-t", "overlay", "overlay", "-o", options),
        devices(root),
        host.mounted(root / "tmp", "-t", "tmpfs", "tmpfs", "-o", "mode=1777"),
        host.mounted(root / "sys", "--bind", "-o", "ro", "/sys"),
    ):
        yield Room(root)


@contextlib.contextmanager
def devices(root: Path) -> Iterator[None]:
    """The few devices of a container. Its shared memory is its own."""
    dev = root / "dev"
    with host.mounted(dev, "-t", "tmpfs", "tmpfs", "-o", "mode=755"), contextlib.ExitStack() as stack:
        for name in DEVICES:
            (dev / name).touch()
            stack.enter_context(host.mounted(dev / name, "--bind", f"/dev/{name}"))
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            (dev / name).symlink_to(f"/proc/self/fd{target}")
        (dev / "shm").mkdir()
        stack.enter_context(host.mounted(dev / "shm", "-t", "tmpfs", "tmpfs", "-o", "mode=1777"))
        (dev / "pts").mkdir()
        stack.enter_context(host.mounted(dev / "pts", "-t", "devpts", "devpts", "-o", "newinstance,ptmxmode=0666"))
        (dev / "ptmx").symlink_to("pts/ptmx")
        yield


def inside_pid(process: subprocess.Popen[bytes]) -> int | None:
    """The command's own process, as this machine numbers it; None while it is not there yet, or no more."""
    with contextlib.suppress(OSError):
        return next(iter(host.children(process.pid)), None)
    return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills what `start` has started, if it still runs: its first process, which takes the others with it."""
    if (pid := inside_pid(process)) is not None:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def enter(pid: int, command: Sequence[str], user: User, folder: str) -> list[str]:
    """The words that run a command beside a running one, as `docker exec` does."""
    program = [_program("nsenter"), f"--target={pid}", "--pid", "--mount", "--root", f"--wdns={folder}"]
    return [*program, f"--setgid={user.gid}", f"--setuid={user.uid}", "--", *command]


def _made_for(source: Path, place: Path) -> list[Path]:
    """Makes what is missing to mount a file or folder on; returns it, innermost first."""
    missing = [path for path in (place, *place.parents) if not path.exists()]
    for path in reversed(missing):
        if path == place and not source.is_dir():
            path.touch()
        else:
            path.mkdir()
    return missing


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise host.HostError(f"{name} of util-linux is not installed here")
    return found

"""Makes what `FROM debian:12.15-slim` names, with debootstrap out of Debian's packages, once; later calls find it.
Called by build; knows nothing of the steps that follow."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from deploy.dockerfiles import host
from deploy.dockerfiles.room import Room, User, devices

SUITES = {"12": "bookworm", "13": "trixie"}
# What the -slim images leave out, also of packages installed later.
SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
"""


class BaseError(Exception):
    """The image that FROM names cannot be made here."""


def make(image: str, store: Path, say: Callable[[str], None]) -> Path:
    """Returns a folder with the base's files; nobody writes in there."""
    match = re.fullmatch(r"debian:((\d+)\.\d+)-slim", image)
    if match is None or match[2] not in SUITES:
        raise BaseError(f"FROM {image}: only debian:{'|'.join(SUITES)}.MINOR-slim can be made here")
    folder = store / image.replace(":", "-")
    if not folder.exists():
        say(f"making {image} with debootstrap")
        _install_debootstrap()
        unfinished = store / f"{folder.name}.unfinished"
        _remove(unfinished)
        host.run("debootstrap", "--variant=minbase", SUITES[match[2]], str(unfinished))
        _finish(unfinished, SUITES[match[2]])
        unfinished.rename(folder)
    version = (folder / "etc/debian_version").read_text().strip()
    if version != match[1]:
        say(f"note: the archive gives Debian {version} now, and the file names {match[1]}")
    return folder


def _install_debootstrap() -> None:
    if shutil.which("debootstrap") is None:
        host.run("apt-get", "-qq", "update")
        host.run("apt-get", "-qq", "install", "-y", "--no-install-recommends", "debootstrap")


def _finish(root: Path, suite: str) -> None:
    """Updates as the official image does, and takes out what its -slim does not have."""
    sources = root / "etc/apt/sources.list"
    _, mirror, *_ = sources.read_text().split()
    sources.write_text(
        f"deb {mirror} {suite} main\ndeb {mirror} {suite}-updates main\ndeb {mirror}-security {suite}-security main\n"
    )
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).write_text("")  # Docker's are empty too: it mounts the host's
    with devices(root):
        room = Room(root)
        with (
            room.bound(Path("/etc/resolv.conf").resolve(), "/etc/resolv.conf"),
            room.bound(Path("/etc/hosts"), "/etc/hosts"),
        ):
            script = "apt-get -qq update && apt-get -qq -y dist-upgrade && apt-get -qq -y autoremove && apt-get clean"
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            room.run(("/bin/sh", "-c", f"({script}) >/dev/null"), quiet, User(0, 0, "/root"), "/")
    for folder in ("info", "lintian", "locale", "man"):
        _remove(root / "usr/share" / folder)
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            _remove(path)
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log", "dev"):
        _remove(root / folder)
        (root / folder).mkdir(parents=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

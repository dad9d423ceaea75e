"""Gathers the build context: the files that git tracks, as they stand in the work tree, less what .dockerignore names.
Called by __main__; knows nothing of Dockerfiles."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from deploy.dockerfiles import host


def gather(repository: Path, folder: Path) -> tuple[int, list[str]]:
    """Copies the context into the folder. Returns the number of files, and those left out for git does not know them:
    a new module that was never added is missed by the image alone."""
    ignore = (repository / ".dockerignore").read_text().splitlines()
    chosen = [name for name in _listed(repository, "--cached") if not ignored(name, ignore)]
    for name in chosen:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, target, follow_symlinks=False)
    unknown = _listed(repository, "--others", "--exclude-standard")
    return len(chosen), [name for name in unknown if not ignored(name, ignore)]


def _listed(repository: Path, *which: str) -> list[str]:
    listed = host.output("git", "-C", str(repository), "ls-files", "-z", *which).split("\0")
    return [name for name in listed if name and (repository / name).is_file()]


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that matches it, or a folder above it, decides."""
    out = False
    for line in patterns:
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.startswith("!")
        if _expression(pattern.removeprefix("!").strip("/")).match(name):
            out = not wanted
    return out


def _expression(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within one folder's name, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts) + "(?:/.*)?$")

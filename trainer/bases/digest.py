"""What names a builtin checkpoint: the SHA-256 of its folder. Called by the supervisor; knows no model."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

CHUNK = 1 << 20  # bytes read at once

Listing = tuple[tuple[str, int, int], ...]  # of each file its relative POSIX name, size in bytes, change in ns


def sha256(folder: Path) -> str:
    """The digest of a folder, 64 hex digits; read once for as long as no file of it changes. Blocks.

    SHA-256 over every file of the folder in the order of its relative POSIX name: the name's length and the contents'
    length as 8 bytes each (big-endian), then the name in UTF-8, then the contents.

    Raises:
        FileNotFoundError: There is no file in it.
    """
    files = [(file, file.stat()) for file in folder.rglob("*") if file.is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} has no model in it")
    listing = sorted((file.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in files)
    return _read(folder, tuple(listing))


@lru_cache(maxsize=16)
def _read(folder: Path, listing: Listing) -> str:
    digest = hashlib.sha256()
    for name, size, _ in listing:
        digest.update(len(name.encode()).to_bytes(8, "big") + size.to_bytes(8, "big") + name.encode())
        with (folder / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()

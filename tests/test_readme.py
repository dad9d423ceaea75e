"""The README's tree is true: what it names is there, and what is there it names, with a line of its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Their files each have a line; of other folders the tree names what a newcomer looks for.
WHOLE = ("gateway", "store", "trainer", "protos", "scripts", "benchmarks")
NO_LINE = re.compile(r"__init__\.py|py\.typed|/migrations/versions/|/tiny_shapes/model/|\.json$")


def tree() -> dict[str, str]:
    """Path -> description, out of the README's fenced block; folders end in a slash."""
    block = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in filter(None, block.splitlines()):
        indent, name, description = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        found["".join(folders) + name] = description
        if name.endswith("/"):
            folders.append(name)
    return found


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.splitlines() if (ROOT / path).exists()]


def test_tree_names_only_what_is_there() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]

    assert missing == []


def test_tree_names_every_source_file_and_every_top_level_entry() -> None:
    sources = [path for path in tracked() if path.startswith(WHOLE) and not NO_LINE.search(path)]
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked() if not path.startswith(".")}

    unnamed = (set(sources) | top) - set(tree())

    assert unnamed == set()


def test_each_line_of_the_tree_says_something() -> None:
    assert [path for path, description in tree().items() if len(description) < 8] == []

"""The README is true: its tree names what is there, and all of it, each with its own line; links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Their files each have a line; of other folders the tree names what a newcomer looks for.
WHOLE = ("gateway", "store", "trainer", "protos", "scripts", "benchmarks", "deploy", "examples", "tests")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/README.md"]
# Where one file is as another, their folder has the line.
ALIKE = re.compile(r"(examples/[^/]+/)(?:held_out/)?\d+\.(?:png|txt)|(tests/protos/golden/).+\.json")
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


def line_of(path: str) -> str:
    """What the tree names a file by: its own path, or its folder's."""
    alike = ALIKE.fullmatch(path)
    return path if alike is None else alike[1] or alike[2]


def test_tree_names_only_what_is_there() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]

    assert missing == []


def test_tree_names_every_source_file_and_every_top_level_entry() -> None:
    sources = {line for path in tracked() if path.startswith(WHOLE) and not NO_LINE.search(line := line_of(path))}
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked() if not path.startswith(".")}

    unnamed = (sources | top) - set(tree())

    assert unnamed == set()


def test_each_line_of_the_tree_says_something() -> None:
    assert [path for path, description in tree().items() if len(description) < 8] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere_and_no_figure_is_missing(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []
    assert re.findall(r"@[A-Z_]+@", text) == []

"""Writes the tables of docs/deploying.md, settings and metrics, from the code that reads and serves them. Called by
hand after a change, as `python -m deploy.reference`; a test says when that was forgotten."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from gateway.config import Settings as GatewaySettings
from gateway.metrics import Metrics as GatewayMetrics
from gateway.metrics import Snapshot
from gateway.stream_metrics import StreamMetrics
from gateway.webhooks.metrics import WebhookMetrics
from store.tunes import QueueStats
from trainer.supervisor.config import Settings as TrainerSettings
from trainer.supervisor.metrics import Metrics as TrainerMetrics

SUFFIXES = {"counter": "_total", "info": "_info"}
PAGE = Path(__file__).resolve().parents[1] / "docs/deploying.md"


def main() -> None:
    """Rewrites what stands between the page's markers."""
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with its tables as they should be."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: written by deploy/reference.py -->\n", f"<!-- {name}: end -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{PAGE} has no place for {name}")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def tables() -> dict[str, str]:
    """Each table as Markdown, by its name."""
    metrics = GatewayMetrics("0")
    StreamMetrics(metrics.registry)
    WebhookMetrics(metrics.registry)
    asyncio.run(_count_once(metrics))
    return {
        "gateway settings": settings_table(GatewaySettings),
        "trainer settings": settings_table(TrainerSettings),
        "gateway metrics": metrics_table(metrics.registry),
        "trainer metrics": metrics_table(TrainerMetrics().registry),
    }


async def _count_once(metrics: GatewayMetrics) -> None:
    """Gives the series that are read from the database something to say."""
    counted = asyncio.Event()

    async def read() -> Snapshot:
        counted.set()
        return Snapshot(QueueStats({}, {}, {}), 0, 0)

    following = asyncio.create_task(metrics.follow(read))
    await counted.wait()
    following.cancel()


def settings_table(settings: type[BaseSettings]) -> str:
    """A row for each field: variable, default, what is allowed, and what its comment or docstring says."""
    meanings = dict(_meanings(settings))
    rows: list[tuple[str, ...]] = [
        (f"`TUNESMITH_{name.upper()}`", _default(field), _allowed(field), meanings[name])
        for name, field in settings.model_fields.items()
    ]
    return _table(("Variable", "Default", "Allowed", "Meaning"), rows)


def metrics_table(registry: CollectorRegistry) -> str:
    """A row for each series of ours; the usual ones of a process are beside the point."""
    rows: list[tuple[str, ...]] = []
    for family in sorted(registry.collect(), key=lambda family: family.name):
        if family.name.startswith("tunesmith_"):
            rows.append((f"`{family.name}{SUFFIXES.get(family.type, '')}`", family.type, family.documentation))
    return _table(("Series", "Kind", "Meaning"), rows)


def _meanings(settings: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Field and meaning: the `#:` lines above it, or the string below it. One without is told by the field above it."""
    source = inspect.getsource(settings)
    lines = source.splitlines()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    meaning = ""
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = following.value if isinstance(following, ast.Expr) else None
        if isinstance(below, ast.Constant) and isinstance(below.value, str):
            meaning = " ".join(below.value.split())
        elif above := _comment_above(lines, node.lineno - 1):
            meaning = above
        yield node.target.id, meaning


def _comment_above(lines: list[str], at: int) -> str:
    found: list[str] = []
    while at and (match := re.match(r"\s*#: (.*)", lines[at - 1])):
        found.insert(0, match[1])
        at -= 1
    return " ".join(found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default: Any = field.default
    if field.default_factory is not None or default in (None, "", ()):
        return "unset"
    return f"`{','.join(default) if isinstance(default, tuple) else default}`"


def _allowed(field: FieldInfo) -> str:
    """From the type and the constraints; the description where there is one."""
    if field.description:
        return field.description
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = {
        name: getattr(one, name) for one in field.metadata for name in ("ge", "gt", "le", "pattern") if _has(one, name)
    }
    if "pattern" in bounds:
        return f"`{bounds['pattern']}`"
    if "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    if "gt" in bounds:
        return f"more than {bounds['gt']}"
    return f"{bounds['ge']} and more" if "ge" in bounds else ""


def _has(constraint: object, name: str) -> bool:
    return getattr(constraint, name, None) is not None


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *escaped))


if __name__ == "__main__":
    main()

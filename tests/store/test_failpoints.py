"""Which failpoints there are, what an armed one does, and that none fires unarmed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import failpoints, keys, tunes
from store.database import Database
from store.errors import DatabaseAway
from store.failpoints import POINTS, STEPS, TRANSACTIONS
from tests.store.world import World

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Whatever a test has armed."""
    yield
    failpoints.arm("")


def sources(*folders: str) -> str:
    return "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_every_commit_of_claim_and_result_has_its_points() -> None:
    text = sources("store")

    named = re.findall(r'db\.(?:write|beat|group)\("([a-z_]+)"', text)

    assert sorted(named) == sorted(TRANSACTIONS)
    assert "finish.before" in POINTS
    assert "finish.committed" in POINTS


def test_every_step_of_taking_up_an_object_is_reached_at_one_place() -> None:
    text = sources("gateway")

    reached = re.findall(r'failpoints\.reach\("([a-z_.]+)"\)', text)

    assert sorted(reached) == sorted(STEPS)


def test_no_commit_of_a_lease_or_a_report_is_without_points() -> None:
    text = (ROOT / "store/leases.py").read_text() + (ROOT / "store/reports.py").read_text()

    unnamed = re.findall(r"db\.(?:write|beat)\(\)", text)

    assert unnamed == []


async def test_unarmed_none_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "claim.before=away")  # read at the edge, by the gateway's main, alone

    for point in POINTS:
        await failpoints.reach(point)


async def test_away_before_the_commit_has_written_nothing(world: World) -> None:
    tune = await world.queued()
    failpoints.arm("cancel.before=away")

    with pytest.raises(DatabaseAway):
        await tunes.cancel(world.database, world.tenant.id, tune.id)

    assert (await world.tune(tune.id)).state == "queued"


async def test_away_after_the_commit_has_written_all(world: World) -> None:
    tune = await world.queued()
    failpoints.arm("cancel.committed=away")

    with pytest.raises(DatabaseAway):
        await tunes.cancel(world.database, world.tenant.id, tune.id)

    assert (await world.tune(tune.id)).state == "cancelled"


async def test_a_transaction_without_a_name_has_no_points(database: Database) -> None:
    failpoints.arm(",".join(f"{point}=away" for point in POINTS))

    await keys.create_tenant(database, "a")


async def test_hits_are_counted_and_chance_repeats_with_the_seed(tmp_path: Path) -> None:
    async def hits(name: str) -> str:
        path = tmp_path / name
        failpoints.arm(f"claim.before=away:0.5;seed=7;hits={path}")
        for _ in range(40):
            try:
                await failpoints.reach("claim.before")
            except DatabaseAway:
                continue
        return path.read_text()

    first, second = await hits("first"), await hits("second")

    assert first == second
    assert 5 < first.count("claim.before away\n") < 35


def test_kill_is_sigkill_and_is_counted_before_it(tmp_path: Path) -> None:
    hits = tmp_path / "hits"
    code = "import asyncio, sys; from store import failpoints; failpoints.arm(sys.argv[1]);"
    code += "asyncio.run(failpoints.reach('finish.committed'))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "protos")])

    ended = subprocess.run(
        [sys.executable, "-c", code, f"finish.committed=kill;hits={hits}"], env={**os.environ, "PYTHONPATH": paths}
    )

    assert ended.returncode == -signal.SIGKILL
    assert hits.read_text() == "finish.committed kill\n"


@pytest.mark.parametrize(
    "spec",
    [
        "claim",
        "claim=kill",
        "claim.after=kill",
        "claim.before=explode",
        "claim.before=kill:0",
        "claim.before=kill:2",
        "claim.before=kill:1.2.3",
        "claim.before=kill;seed=x",
        "claim.before=kill;sed=1",
    ],
)
def test_what_arms_nothing_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"wanted"):
        failpoints.read(spec)

"""The one table of moves, and the database's copy of it."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from store.database import Database
from store.states import LEASED, MOVES, TERMINAL, TuneState, may_move, trigger_sql
from tests.store.world import World


def test_nothing_leaves_a_final_state() -> None:
    assert all(not MOVES[state] for state in TERMINAL)
    assert set(MOVES) == set(TuneState)


def test_only_the_contracts_words_are_public() -> None:
    assert {state.public for state in TuneState} == {"pending", "running", "succeeded", "cancelled", "failed"}


async def test_the_database_holds_the_same_table(world: World) -> None:
    tune = await world.queued()

    for old, new in itertools.product(TuneState, TuneState):
        async with world.database.write() as transaction:
            await transaction.execute(text(_drop(world.database)))
            await transaction.execute(text(_set(tune.id, old)))
            await transaction.execute(text(trigger_sql(world.database.dialect)[-1]))
        forbidden = old is not new and not may_move(old, new)
        with pytest.raises(DBAPIError, match="table of moves") if forbidden else contextlib.nullcontext():
            async with world.database.write() as transaction:
                await transaction.execute(text(_set(tune.id, new)))


async def test_the_database_lets_no_epoch_fall(world: World) -> None:
    claim = await world.claimed()

    with pytest.raises(DBAPIError, match="table of moves"):
        async with world.database.write() as transaction:
            await transaction.execute(text(f"UPDATE tunes SET lease_epoch = 0 WHERE id = '{claim.tune.id}'"))


async def test_the_installed_trigger_is_todays(database: Database) -> None:
    where = (
        "SELECT sql FROM sqlite_master WHERE name = 'tunes_moves'"
        if database.dialect == "sqlite"
        else "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'tunes_moves'"
    )
    async with database.read() as connection:
        installed = (await connection.execute(text(where))).scalar_one()
    async with database.write() as transaction:
        await transaction.execute(text(_drop(database)))
        await transaction.execute(text(trigger_sql(database.dialect)[-1]))
        todays = (await transaction.execute(text(where))).scalar_one()

    assert installed == todays


def _drop(database: Database) -> str:
    return "DROP TRIGGER tunes_moves" + ("" if database.dialect == "sqlite" else " ON tunes")


def _set(tune_id: str, state: TuneState) -> str:
    lease = "tunesmith_now()" if state in LEASED else "NULL"
    done = "tunesmith_now()" if state is TuneState.SUCCEEDED else "NULL"
    return (
        f"UPDATE tunes SET state = '{state}', lease_trainer_id = 'x', lease_epoch = 1, "
        f"lease_expires_at = {lease}, succeeded_at = {done} WHERE id = '{tune_id}'"
    )

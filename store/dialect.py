"""The one place where SQLite and PostgreSQL differ in what is asked of them, each difference with its reason. Used by
tables and by the modules that write SQL; knows no tables.

What needs nothing here: `FOR UPDATE SKIP LOCKED`, which SQLAlchemy leaves out on SQLite, where one writer at a time
makes it needless; RETURNING; partial indexes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Dialect, String, Text, bindparam, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Time(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite has no such type: there it is microseconds since 1970, which compare and index
    well.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type."""
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | int | None:
        """Towards the database."""
        if value is None or dialect.name != "sqlite":
            return value
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: datetime | int | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if isinstance(value, int):
            return _EPOCH + timedelta(microseconds=value)
        return None if value is None else value.astimezone(UTC)


class Document(TypeDecorator[Any]):
    """A JSON value: JSONB on PostgreSQL, which can look into it; text on SQLite, whose json functions read text."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type."""
        return dialect.type_descriptor(
            JSONB(none_as_null=True) if dialect.name == "postgresql" else JSON(none_as_null=True)
        )


#: The one clock that decides. A function in the database on PostgreSQL (a migration makes it), one in the connection
#: on SQLite; so tests can move it (Database.move_clock), and an index can be searched by it, for it is fixed within a
#: statement.
def now() -> ColumnElement[datetime]:
    """The database's time."""
    return func.tunesmith_now(type_=Time())


def later(seconds: float | ColumnElement[float]) -> ColumnElement[datetime]:
    """The database's time, so many seconds from now; negative: ago."""
    return func.tunesmith_later(seconds, type_=Time())


class Strings(TypeDecorator[Sequence[str]]):
    """Any number of strings as one parameter: an array on PostgreSQL, JSON text on SQLite, which has no arrays."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The parameter's type."""
        return dialect.type_descriptor(ARRAY(Text()) if dialect.name == "postgresql" else String())

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> list[str] | str:
        """Towards the database."""
        strings = list(value or ())
        return strings if dialect.name == "postgresql" else json.dumps(strings)


class among(FunctionElement[bool]):  # noqa: N801  # reads as an operator in a statement
    """`among(column, "ids")`: the column is one of the strings of parameter `ids`.

    One parameter whatever their number: the statement is compiled and prepared once, and meets no limit on parameters.
    """

    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        super().__init__(column, bindparam(name, type_=Strings()))


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  # SQLAlchemy's
    column, strings = element.clauses
    return f"{compiler.process(column, **options)} = ANY ({compiler.process(strings, **options)})"


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  # SQLAlchemy's
    column, strings = element.clauses
    values = f"SELECT value FROM json_each({compiler.process(strings, **options)})"  # noqa: S608  # compiled fragments
    return f"{compiler.process(column, **options)} IN ({values})"


class holds_all(FunctionElement[bool]):  # noqa: N801  # as above
    """`holds_all(column, "words")`: the JSON list in the column has every string of parameter `words`."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        super().__init__(column, bindparam(name, type_=Strings()))


@compiles(holds_all, "postgresql")
def _holds_all_postgresql(element: holds_all, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  # as above
    column, words = element.clauses
    return f"{compiler.process(column, **options)} @> to_jsonb({compiler.process(words, **options)})"


@compiles(holds_all, "sqlite")
def _holds_all_sqlite(element: holds_all, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401  # as above
    column, words = element.clauses
    wanted = f"SELECT value FROM json_each({compiler.process(words, **options)})"  # noqa: S608  # compiled fragments
    there = f"SELECT value FROM json_each({compiler.process(column, **options)})"  # noqa: S608
    return f"NOT EXISTS ({wanted} EXCEPT {there})"

"""Whole numbers of `tunesmith`'s options, of every command."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import cyclopts
import pytest
from cyclopts.exceptions import CoercionError

from gateway.cli.__main__ import app
from gateway.cli.numbers import whole


def integers(of: cyclopts.App, *words: str) -> Iterator[tuple[str, cyclopts.Argument]]:
    """Each option, of this command and those below it, that takes an int; with what calls it."""
    if of.default_command is not None and words:
        for argument in of.assemble_argument_collection():
            if int in (argument.hint, *typing.get_args(argument.hint)):
                yield " ".join((*words, argument.name)), argument
    for word in of:
        if not word.startswith("-"):
            yield from integers(of[word], *words, word)


def test_every_integer_of_every_command_is_read_as_a_whole_number() -> None:
    found = dict(integers(app))

    assert {"tenant set --running-limit", "up --trainers", "webhook log --limit"} <= set(found)
    assert [name for name, argument in found.items() if argument.parameter.converter is not whole] == []


@pytest.mark.parametrize("value", ["0.4", "1.5", "1_0", "1e3", "", "three", "٣", "9" * 19])
def test_what_is_no_whole_number_is_refused_and_not_rounded(value: str) -> None:
    with pytest.raises(CoercionError, match=f"{value!r}: a whole number was wanted"):
        app.parse_args(("tenant", "set", "acme", f"--running-limit={value}"), exit_on_error=False, print_error=False)


def test_whole_number_may_bear_a_sign() -> None:
    _, bound, _ = app.parse_args(("tenant", "set", "acme", "--running-limit=+3", "--queue-limit=-1"))

    assert (bound.arguments["running_limit"], bound.arguments["queue_limit"]) == (3, -1)

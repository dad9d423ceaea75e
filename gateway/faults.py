"""What is wrong with a request beside the rules: told in the same answer as the rules that it breaks.

A servicer says by which of its methods it finds such faults of an rpc's request; the interceptors ask that method about
a request which they refuse, and the servicer itself about all others.

    @also_found_by(_faults)
    async def CreateAsset(self, request, context): ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from gateway import rules
from gateway.status import Violation
from store.errors import InvalidReference, StoreError

Behaviour = TypeVar("Behaviour", bound=Callable[..., Any])
Find = Callable[[Any, Any], Awaitable[Sequence[Violation]]]
"""(servicer, request): what is wrong with the request. It may break any rule, but for the bounds of its lists."""

_FIND = "tunesmith_find"  # the method's attribute


def also_found_by(find: Find) -> Callable[[Behaviour], Behaviour]:
    """Marks a servicer's method."""

    def mark(behaviour: Behaviour) -> Behaviour:
        setattr(behaviour, _FIND, find)
        return behaviour

    return mark


async def found_besides(request: Any, behaviour: Any, broken: Sequence[Violation]) -> list[Violation]:  # noqa: ANN401
    """Returns what is wrong with a request beside the rules that it breaks. Nothing where the store cannot be asked: a
    database that is away makes no bad request a good one.
    """
    find: Find | None = getattr(behaviour, _FIND, None)
    if find is None:
        return []
    within, _ = rules.cut(request)
    try:
        found = await find(behaviour.__self__, within)
    except StoreError:
        return []
    told = {violation.field for violation in broken}
    missing = tuple(f"{violation.field}." for violation in broken if violation.reason == "REQUIRED")
    return [one for one in found if not (one.field.startswith(missing) or _is_idle(one, told))]


def _is_idle(violation: Violation, told: set[str]) -> bool:
    """What breaks a rule is nobody's id, and that goes without saying."""
    return violation.reason == InvalidReference.reason and violation.field in told

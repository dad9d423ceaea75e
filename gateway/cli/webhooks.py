"""`tunesmith webhook`: which addresses are told of a tenant's tunes, and how that goes, in the database of
TUNESMITH_DATABASE_URL. Called by the command line.

A secret is printed alone on standard output, so that a script can take it; what is said about it goes to standard
error.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import cyclopts

from gateway import outbound
from gateway.cli.columns import NOTHING, lines
from gateway.cli.database import in_database
from gateway.cli.faults import refuse
from gateway.cli.numbers import WHOLE
from gateway.outbound import OutboundRefused
from store import tenants
from store.database import Database
from store.webhooks import endpoints, messages
from store.webhooks.endpoints import ENDS, EndpointStanding
from store.webhooks.messages import LogEntry
from store.webhooks.tables import WebhookAttempt

webhook = cyclopts.App(name="webhook", help="Webhooks of tenants, in the database of TUNESMITH_DATABASE_URL.")

EventType = Literal["tune.running", "tune.succeeded", "tune.failed", "tune.cancelled"]
COLUMNS = ("ENDPOINT", "TENANT", "STATE", "WAITING", "TOLD OF", "URL", "DESCRIPTION")
LOG_COLUMNS = ("WRITTEN", "MESSAGE", "ENDPOINT", "TYPE", "TUNE", "STATE", "TRIES", "LAST ANSWER")
TRY_COLUMNS = ("ENDED", "ENDPOINT", "ANSWER", "SECONDS")
UNSAID = "the operator wants it quiet"  # the reason why an endpoint is disabled, where none is given


@webhook.command
def add(
    tenant: str,
    url: str,
    *,
    event_type: Annotated[tuple[EventType, ...], cyclopts.Parameter(name="--type", negative="")] = (),
    description: str = "",
) -> int:
    """Tell an address of a tenant's tunes from now on, and print the secret that its webhooks are signed with.

    Parameters
    ----------
    tenant
        The tenant's name.
    url
        http://... or https://..., without user and password, to port 80, 443 or one above 1023. An address that is not
        public must be among those that the gateways' settings allow.
    event_type
        What it is told of; repeat for more than one. How tunes end, if not given.
    description
        What it is for: up to 200 printable characters.
    """

    async def make(database: Database) -> None:
        is_known = tenant in {each.name for each in await tenants.list_tenants(database)}
        refuse(
            [
                None if is_known else f"there is no tenant {tenant!r}",
                _fault_of_url(url),
                endpoints.fault_of_text("description", description, least=0),
            ]
        )
        before = [
            each.endpoint.id for each in await endpoints.list_endpoints(database, tenant) if each.endpoint.url == url
        ]
        endpoint, secret = await endpoints.add(database, tenant, url, event_type or ENDS, description)
        print(f"{endpoint.id} of tenant {tenant} is told of {', '.join(endpoint.event_types)}", file=sys.stderr)
        for twin in before:  # no error: the two may be told of different things
            said = (
                f"{twin} has this URL too, and its receiver is told twice; `tunesmith webhook remove` ends one of them"
            )
            print(f"tunesmith: warning: {said}", file=sys.stderr)
        print(secret)

    return in_database(make)


@webhook.command(name="list")
def list_endpoints(tenant: str | None = None) -> int:
    """Print all endpoints, or a tenant's: whether each is enabled, or why not, how many messages wait for it and for
    how long, and what it is told of.

    Parameters
    ----------
    tenant
        The tenant's name.
    """

    async def show(database: Database) -> None:
        print(lines([COLUMNS, *map(_cells, await endpoints.list_endpoints(database, tenant))]))

    return in_database(show)


@webhook.command
def remove(endpoint_id: str) -> int:
    """Forget an endpoint, with what waits for it and its log.

    Parameters
    ----------
    endpoint_id
        As `webhook list` prints it.
    """

    async def forget(database: Database) -> None:
        await endpoints.remove(database, endpoint_id)
        print(f"{endpoint_id} is removed, with its log", file=sys.stderr)

    return in_database(forget)


@webhook.command
def rotate(endpoint_id: str, *, hours: float = 24.0) -> int:
    """Make a new secret for an endpoint and print it. The old one signs too for a time.

    Parameters
    ----------
    endpoint_id
        As `webhook list` prints it.
    hours
        For how long the old one still signs, at most 8784; 0: no longer.
    """

    async def change(database: Database) -> None:
        secret = await endpoints.rotate(database, endpoint_id, hours * 3600)
        old = f"and for {hours:g} hours with the old one too" if hours else "and no longer with the old one"
        print(f"{endpoint_id} signs with the new secret, {old}", file=sys.stderr)
        print(secret)

    return in_database(change)


@webhook.command
def enable(endpoint_id: str) -> int:
    """Tell a disabled endpoint again: also what waits for it, but not what happened meanwhile.

    Parameters
    ----------
    endpoint_id
        As `webhook list` prints it.
    """

    async def change(database: Database) -> None:
        await endpoints.enable(database, endpoint_id)
        print(f"{endpoint_id} is enabled", file=sys.stderr)

    return in_database(change, wakes=True)


@webhook.command
def disable(endpoint_id: str, *, reason: str | None = None) -> int:
    """Tell an endpoint nothing more until it is enabled.

    Parameters
    ----------
    endpoint_id
        As `webhook list` prints it.
    reason
        Why, for people: 1 to 200 printable characters. Not given, the one before stays, or it says that you want it so.
    """

    async def change(database: Database) -> None:
        why = UNSAID if reason is None else reason
        endpoint = await endpoints.disable(database, endpoint_id, why, keeps=reason is None)
        print(f"{endpoint_id} is disabled: {endpoint.disabled_reason}", file=sys.stderr)

    return in_database(change)


@webhook.command
def log(
    message_id: str | None = None,
    *,
    endpoint: str | None = None,
    limit: Annotated[int, WHOLE, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=10_000))] = 50,
) -> int:
    """Print the newest messages, a line for each endpoint; or each try of one message.

    Parameters
    ----------
    message_id
        The message whose tries are printed: msg_...
    endpoint
        Only this endpoint's.
    limit
        How many messages, 1 to 10,000.
    """

    async def show(database: Database) -> None:
        found = await messages.log(database, message_id=message_id, endpoint_id=endpoint, limit=limit)
        print(lines([LOG_COLUMNS, *map(_log_cells, found)]))
        if message_id is not None:
            tries = [attempt for entry in found for attempt in entry.attempts]
            print("\n" + lines([TRY_COLUMNS, *map(_try_cells, tries)]))

    return in_database(show)


@webhook.command
def resend(message_id: str, *, endpoint: str | None = None) -> int:
    """Send a message once more, under its old id, also where it was delivered: now, or when its endpoint is enabled.

    Parameters
    ----------
    message_id
        As `webhook log` prints it, and as the receiver had it in webhook-id.
    endpoint
        Only to this one of its endpoints.
    """

    async def again(database: Database) -> None:
        resent = await messages.resend(database, message_id, endpoint)
        if count := len(resent.now):
            print(f"{message_id} is sent again to {count} endpoint{'s' * (count != 1)}", file=sys.stderr)
        for each in resent.once_enabled:
            print(f"{message_id} waits for {each}, which is disabled, until `webhook enable {each}`", file=sys.stderr)

    return in_database(again, wakes=True)


def _fault_of_url(url: str) -> str | None:
    try:
        outbound.askable(url)
    except OutboundRefused as exc:  # whom no gateway would ever ask
        # The sentence says a scheme or a host, which are parts of a password where the URL is cut at the wrong places.
        hidden = endpoints.fault_of_url(url) if "@" in url else None
        return hidden or f"the URL is {endpoints.shown(url)}: {exc.sentence}"
    return endpoints.fault_of_url(url)


def _cells(standing: EndpointStanding) -> tuple[str, ...]:
    row = standing.endpoint
    waits = NOTHING
    if standing.waited is not None:
        waits = f"{standing.pending}, {max(0, round(standing.waited.total_seconds()))} s"
    state = "enabled" if row.disabled_reason is None else f"disabled: {row.disabled_reason}"
    if row.disabled_reason is None and row.failing_since is not None:
        state = f"failing since {row.failing_since:%Y-%m-%d %H:%M}"
    told = ",".join(row.event_types)
    return (row.id, standing.tenant_name, state, waits, told, row.url, row.description or NOTHING)


def _log_cells(entry: LogEntry) -> tuple[str, ...]:
    row = entry.delivery
    last = _answer(entry.attempts[-1]) if entry.attempts else NOTHING
    return (
        f"{row.created_at:%Y-%m-%d %H:%M:%S}",
        row.message_id,
        row.endpoint_id,
        row.event_type,
        row.tune_id,
        row.state,
        str(len(entry.attempts)),
        last,
    )


def _try_cells(attempt: WebhookAttempt) -> tuple[str, ...]:
    return (f"{attempt.ended_at:%Y-%m-%d %H:%M:%S}", attempt.endpoint_id, _answer(attempt), f"{attempt.seconds:.2f}")


def _answer(attempt: WebhookAttempt) -> str:
    return attempt.error or f"HTTP {attempt.status}"

"""Writes what webhooks are to tell of a tune's move, in the move's own transaction: so that no tune comes to its end
without them, nor they without it, whatever dies. Called by moves; who is told is in endpoints.py, how in deliveries.py.

A message is thin: what happened to which tune, and nothing that could not be told to whoever reads the receiver's log.
The receiver asks the API for more.
"""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy import String, bindparam, insert, literal_column, select

from store.database import Transaction
from store.dialect import holds_all, now
from store.ids import new_id
from store.states import TERMINAL, TuneState
from store.tables import Tune
from store.webhooks.tables import EVENT_TYPES, webhook_deliveries, webhook_endpoints

#: States whose public name is an event type's.
TOLD = TERMINAL | {TuneState.RUNNING}
assert {f"tune.{state.public}" for state in TOLD} == set(EVENT_TYPES)


async def tell(transaction: Transaction, tune: Tune) -> None:
    """The tune has just come to its state: one message for each endpoint that wants to know. One statement, which
    finds nothing where the tenant has none.
    """
    if tune.state not in TOLD:
        return
    event_type = f"tune.{tune.state.public}"
    message = {
        "message": new_id("msg"),
        "tenant": tune.tenant_id,
        "tune": tune.id,
        "type": event_type,
        "words": [event_type],
        "body": _body(tune, event_type),
    }
    if (await transaction.execute(_TELL, message)).first() is not None:
        transaction.wake("webhook", tune.tenant_id)


#: By webhook_endpoints_of_tenant. KEY SHARE: an endpoint that is being removed is waited for and then not found, and
#: one that is found is not removed before the commit; so no move ever fails for it.
_TOLD = (
    select(
        bindparam("message", type_=String()),
        webhook_endpoints.c.id,
        bindparam("tune", type_=String()),
        bindparam("type", type_=String()),
        bindparam("body", type_=String()),
        literal_column("'pending'"),
        now(),
        literal_column("0"),
        literal_column("0"),
        now(),
    )
    .where(
        webhook_endpoints.c.tenant_id == bindparam("tenant"),
        webhook_endpoints.c.disabled_at.is_(None),
        holds_all(webhook_endpoints.c.event_types, "words"),
    )
    .with_for_update(read=True, key_share=True)
)
_COLUMNS = (
    "message_id",
    "endpoint_id",
    "tune_id",
    "event_type",
    "body",
    "state",
    "due_at",
    "epoch",
    "tries",
    "created_at",
)
_TELL = (
    insert(webhook_deliveries)
    .from_select(_COLUMNS, _TOLD, include_defaults=False)
    .returning(webhook_deliveries.c.endpoint_id)
)


def _body(tune: Tune, event_type: str) -> str:
    told = {
        "type": event_type,
        "timestamp": _rfc3339(tune.updated_at),
        "data": {
            "id": tune.id,
            "tenant_id": tune.tenant_id,
            "name": tune.name,
            "status": tune.state.public,
            "output_lora_ids": tune.output_lora_ids,
        },
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def _rfc3339(time: datetime) -> str:
    """As the JSON profile writes times."""
    return time.isoformat().replace("+00:00", "Z")

"""docs/webhooks.md says what the code does: types, bodies, tries, words, commands; and its example verifies."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway import outbound
from gateway.cli.__main__ import app
from gateway.webhooks import delivery
from gateway.webhooks.signatures import signed_headers
from store.states import TuneState
from store.tables import Tune
from store.webhooks import deliveries
from store.webhooks.endpoints import ENDS, MOST
from store.webhooks.outbox import _body
from store.webhooks.tables import EVENT_TYPES

PAGE = (Path(__file__).parents[1] / "docs/webhooks.md").read_text()
UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


def test_page_names_each_type_and_which_is_sent_only_where_it_is_asked_for() -> None:
    rows = dict(re.findall(r"^\| `(tune\.\w+)` \| (.*) \|$", PAGE, re.MULTILINE))

    assert tuple(rows) == EVENT_TYPES
    assert {each for each in EVENT_TYPES if "only where it is asked for" in rows[each]} == set(EVENT_TYPES) - set(ENDS)


def test_body_on_the_page_is_what_the_outbox_writes() -> None:
    (shown,) = re.findall(r"^    (\{.*\})$", PAGE, re.MULTILINE)
    example: dict[str, Any] = json.loads(shown)
    data = example["data"]
    tune = Tune(
        **{key: data[key] for key in ("id", "tenant_id", "name", "output_lora_ids")},
        state=TuneState.SUCCEEDED,
        updated_at=datetime.fromisoformat(example["timestamp"]),
    )

    assert _body(tune, example["type"]) == shown


def test_example_on_the_page_verifies_and_refuses() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    example: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), example)
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"type":"tune.succeeded"}'
    now = int(time.time())

    told = example["told"]

    assert told(secret, signed_headers("msg_1", now, body, [secret]), body) == json.loads(body)
    assert told(secret, signed_headers("msg_1", now, body, [secret]), body + b" ") is None
    assert told(secret, signed_headers("msg_1", now - 600, body, [secret]), body) is None


def test_tries_on_the_page_are_the_schedule() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (\d+) (seconds|minutes|hours)(?: each)? \|$", PAGE, re.MULTILINE)
    pauses = [float(number) * UNITS[unit] for tries, number, unit in rows for _ in tries.split(",")]

    assert tuple(pauses) == deliveries.SCHEDULE
    assert f"within {delivery.TIMEOUT:g} seconds" in PAGE
    assert f"have {delivery.ABREAST} of their own under way" in PAGE
    assert f"A gateway has {delivery.LANES} lanes, for one endpoint each" in " ".join(PAGE.split())
    assert f"no try has gone well for {deliveries.FAILING / 86400:g} days" in PAGE
    assert deliveries.LONGEST_PAUSE == 86400.0
    assert f"A tenant has\n{MOST} endpoints at most" in PAGE


def test_words_on_the_page_are_the_clients() -> None:
    source = Path(outbound.__file__).read_text()
    (listed,) = re.findall(r"the log has a word: (.*?)\. ", PAGE, re.DOTALL)

    for word in re.findall(r"`(\w+)`", listed):
        assert f'"{word}"' in source, word


def test_commands_on_the_page_are_there() -> None:
    named = re.findall(r"^\| `tunesmith webhook (\w+)", PAGE, re.MULTILINE)

    assert sorted(named) == sorted(name for name in app["webhook"] if not name.startswith("-"))
    for name in named:
        assert app["webhook"][name].help


def test_metrics_and_settings_on_the_page_are_those_of_the_reference() -> None:
    reference = (Path(__file__).parents[1] / "docs/deploying.md").read_text()

    for name in re.findall(r"`(tunesmith_\w+|TUNESMITH_\w+)", PAGE):
        assert f"`{name}`" in reference, name

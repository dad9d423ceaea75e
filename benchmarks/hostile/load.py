"""Sends attacks at a steady rate, in a process of its own, so that the gateway has a core. Prints as JSON what became
of them: `python -m benchmarks.hostile.load '{...}'`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from benchmarks.hostile.attacks import CUT_OFF, Attack, Target, attack, request
from tests.servers.corpus import png_bomb

PATIENCE = 45.0  # seconds for one answer; what takes longer counts as none
BOMBS = 0.5  # a second: each is three requests and a judge's work


@dataclass
class Tally:
    """What became of the attacks."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    """Kind -> status -> how many; CUT_OFF where none came."""
    unexpected: Counter[str] = field(default_factory=Counter)
    """"KIND STATUS", where docs/api.md promises another one."""
    seconds: list[float] = field(default_factory=list)
    """Of those that were answered, slow ones left out."""
    late: int = 0
    """Attacks that this process sent more than a second after their time."""

    def add(self, made: Attack, status: int, seconds: float) -> None:
        """One has ended."""
        self.statuses.setdefault(made.kind, Counter())[status] += 1
        if status not in made.statuses:
            self.unexpected[f"{made.kind} {status}"] += 1
        if not made.held and status != CUT_OFF:
            self.seconds.append(seconds)


async def send(addresses: dict[str, Any], target: Target, *, rate: float, seconds: float, seed: int) -> Tally:
    """Sends for so long, then lets go of what is still held."""
    random, tally, loop = Random(seed), Tally(), asyncio.get_running_loop()
    first = loop.time()
    async with asyncio.TaskGroup() as tasks:
        others = [tasks.create_task(_bombs(addresses, target, tally, BOMBS, seconds))]
        holding: list[asyncio.Task[None]] = []
        for number in range(int(rate * seconds)):
            due = first + number / rate
            await asyncio.sleep(max(due - loop.time(), 0))
            tally.late += loop.time() > due + 1
            made = attack(random, target)
            (holding if made.held else others).append(tasks.create_task(_one(addresses, made, tally)))
        await asyncio.gather(*others)
        for task in holding:
            task.cancel()
    return tally


async def _one(addresses: dict[str, Any], made: Attack, tally: Tally) -> None:
    started = time.perf_counter()
    status = CUT_OFF
    try:
        async with asyncio.timeout(PATIENCE):
            status = await exchange(addresses[made.door], made.sent)
    except (OSError, TimeoutError):
        pass
    finally:  # also where it was held to the end
        tally.add(made, status, time.perf_counter() - started)


async def exchange(address: Sequence[Any], sent: Sequence[bytes]) -> int:
    """The status that is answered; CUT_OFF where the server hangs up without one."""
    reader, writer = await asyncio.open_connection(*address)
    reading = asyncio.ensure_future(reader.readexactly(12))
    try:
        for each in sent:
            if reading.done():
                break  # it has heard enough
            writer.write(each)
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.wait({draining, reading}, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        head = await reading
        return int(head[9:12]) if head.startswith(b"HTTP/1.") else CUT_OFF
    except (ConnectionError, EOFError, ValueError):
        return CUT_OFF
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.close()


async def _bombs(addresses: dict[str, Any], target: Target, tally: Tally, rate: float, seconds: float) -> None:
    """Uploads that are no more than they seem: made, put, completed; each has to be refused. The last one begun is seen
    to its end, however slow the machine."""
    first = started = time.perf_counter()
    for number in range(max(int(rate * seconds), 1)):
        if started > first + seconds:
            break
        status = CUT_OFF
        try:
            status = await _bomb(addresses["http"], target, f"bomb-{number}")
        except (OSError, ValueError, KeyError):
            pass
        finally:
            tally.add(Attack("bomb", [], frozenset({200})), status, time.perf_counter() - started)
        await asyncio.sleep(1 / rate)
        started = time.perf_counter()


async def _bomb(address: Sequence[Any], target: Target, name: str) -> int:
    """The status of complete-upload; 999 where the bomb was taken for a picture."""
    body = json.dumps({"asset_type": "file", "name": name, "data": {"asset_type": "file"}}).encode()
    made = await _asked(address, request("POST", "/v1/assets", body, key=target.key, Content_Type="application/json"))
    id, put_url = made["asset"]["id"], made["transfer_api"]["put_url"]
    await _asked(address, request("PUT", "/" + put_url.split("/", 3)[3], png_bomb()))
    status = await exchange(address, [request("POST", f"/v1/assets/{id}/complete-upload", key=target.key)])
    found = await _asked(address, request("GET", f"/v1/assets/{id}", key=target.key))
    return status if found["asset"]["status"] == "rejected" else 999


async def _asked(address: Sequence[Any], sent: bytes) -> Any:  # noqa: ANN401 - JSON
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(sent)
        answer = await reader.read()
    finally:
        writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    result = asyncio.run(send(told["addresses"], Target(**told["target"]), **told["load"]))
    print(
        json.dumps(
            {
                "statuses": {kind: dict(found) for kind, found in result.statuses.items()},
                "unexpected": dict(result.unexpected),
                "seconds": result.seconds,
                "late": result.late,
            }
        )
    )

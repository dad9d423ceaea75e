"""From POST to the first step on a warm trainer, six pictures."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.basics.spread import spread
from tests.servers.photographs import photographs
from tests.servers.service import Client, Service


def measure(quick: bool) -> dict[str, Any]:
    """Seconds from sending POST /v1/tune to hearing of the first step on the event stream."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs(Path(folder))
        with Service(Path(folder) / "service") as service, service.client() as client:
            files = [client.upload(path) for path in pictures]
            _first_step(client, files, "cold")
            again = [_first_step(client, files, f"warm-{number}") for number in range(3 if quick else 15)]
            # Other bytes under the same picture: nothing of it can be in the trainer's caches.
            fresh = []
            for number in range(3 if quick else 15):
                changed = [_changed(path, number) for path in pictures]
                fresh.append(_first_step(client, [client.upload(path) for path in changed], f"fresh-{number}"))
            return {"same_pictures_seconds": spread(again), "new_pictures_seconds": spread(fresh)}


def _first_step(client: Client, files: list[str], name: str) -> float:
    started = time.perf_counter()
    tune = client.tune(name, files, steps=10)
    seconds = None
    for event in client.events(tune["id"]):  # to its end, so that the next one finds a free slot
        if seconds is None and event["event"]["type"] == "metrics":
            seconds = time.perf_counter() - started
    assert seconds is not None, f"{name} made no step"
    return seconds


def _changed(path: Path, number: int) -> Path:
    """The same picture with one pixel of another grey."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    image.putpixel((0, 0), (number * 7 % 256, number, 128))
    changed = path.with_name(f"{path.stem}-{number}.png")
    image.save(changed)
    return changed

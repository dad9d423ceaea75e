"""Bad files by the way that callers take: create, PUT, complete; each with its documented answer."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.corpus import ACCEPTED, REFUSED, drawn, saved
from tests.servers.processes import children, memory_bytes
from tests.servers.service import Client, Service

SHOWN = {"jpeg": "jpg", "png": "png"}  # a format that the old SDK does not know is shown as unknown
JUDGE = 1536 * 2**20  # bytes that a judge may take


def uploaded(client: Client, content: bytes, asset_type: str = "file", **data: Any) -> dict[str, Any]:
    """The asset, judged."""
    body = {"asset_type": asset_type, "name": "upload", "data": {"asset_type": asset_type, **data}}
    made = client.post("/v1/assets", json=body)
    assert made.status_code == 200, made.text
    put = httpx.put(made.json()["transfer_api"]["put_url"], content=content, timeout=60)
    assert put.is_success, put.text
    path = f"/v1/assets/{made.json()['asset']['id']}"
    completed = client.post(f"{path}/complete-upload", json={})
    assert (completed.status_code, completed.json()) == (200, {"error": None}), completed.text
    found: dict[str, Any] = client.get(path).json()["asset"]
    return found


def test_every_file_of_the_corpus_gets_its_verdict_and_good_ones_are_judged_meanwhile(
    service: Service, client: Client
) -> None:
    [gateway] = service.ready["pids"]["gateway"]
    good = saved(drawn(), "PNG")
    files = {**{name: (make(), "", kind) for name, (make, kind) in ACCEPTED.items()}}
    files |= {name: (make(), reason, "") for name, (make, reason) in REFUSED.items()}

    with ThreadPoolExecutor(4) as callers:
        beside = [callers.submit(uploaded, client, good) for _ in range(10)]
        judged = {name: callers.submit(uploaded, client, content) for name, (content, _, _) in files.items()}

    for name, (content, reason, kind) in files.items():
        asset = judged[name].result()
        if reason:
            assert (asset["status"], asset["status_info"]["reason"]) == ("rejected", reason), name
            assert asset["status_details"], name
        else:
            assert (asset["status"], asset["size_bytes"]) == ("ready", len(content)), name
            assert asset["data"]["file_format"] == SHOWN.get(kind, "unknown"), name
    assert all(each.result()["status"] == "ready" for each in beside)
    judges = children(gateway)
    assert judges
    for judge in judges:
        [limit] = [line for line in Path(f"/proc/{judge}/limits").read_text().splitlines() if "address space" in line]
        assert limit.split()[3:5] == [str(JUDGE)] * 2
        assert memory_bytes(judge) < JUDGE / 4, "what the corpus's bombs would unpack to is kept"
    service.reread()
    assert service.ready["pids"]["gateway"] == [gateway], "the gateway was restarted"


def weights(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(start: int, stop: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start], "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ((2**60).to_bytes(8, "little") + b"{}", "NOT_SAFETENSORS"),
        (weights({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)), "BAD_HEADER"),
        (weights({"a": tensor(0, 4, "F16")}, bytes(4)), "BAD_HEADER"),
        (weights({"a": tensor(0, 400)}, bytes(4)), "TRUNCATED"),
        (pickle.dumps({"state_dict": [0] * 50}), "PICKLE"),
    ],
    ids=["header lies", "overlap", "wrong dtype", "truncated", "pickle under its name"],
)
def test_bad_weights_are_rejected_with_their_reason(client: Client, content: bytes, reason: str) -> None:
    asset = uploaded(client, content, "checkpoint", engine="image/stable-diffusion-v1-5", file_format="safetensors")

    assert (asset["status"], asset["status_info"]["reason"]) == ("rejected", reason)

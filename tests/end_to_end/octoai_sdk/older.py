"""Walks through the older Python SDK, `octoai-sdk`, unmodified. Run by test_older_sdk.py in a process of its own, since
that SDK's package has the name of the newer one's. Arguments: URL KEY PICTURE. Prints what each call gave, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
from clients.asset_lake.models import AssetType, BaseEngine, DataType
from octoai import __version__
from octoai.clients.asset_orch import AssetOrchestrator, CheckpointData, FileData
from octoai.clients.fine_tuning import FineTuningClient

CHECKPOINT = "tunesmith:tiny-shapes"


def main(url: str, key: str, picture: str) -> dict[str, Any]:
    """Makes every call that the SDK has."""
    assets = AssetOrchestrator(token=key, endpoint=url)
    tunes = FineTuningClient(key, endpoint=url)
    said: dict[str, Any] = {"version": __version__}
    listed = assets.list(limit=100, offset=0)
    said["shelf"] = {asset.name: [asset.status, asset.data, asset.size_bytes] for asset in listed}

    cat = assets.create(FileData("png"), "cat", file=picture)
    said["uploaded"] = [cat.status, cat.size_bytes, cat.data]
    said["waited"] = assets.wait_for_ready(cat).status
    said["found"] = [assets.get(id=cat.id).id == cat.id, assets.get(name="cat").id == cat.id]
    said["by filter"] = [
        [asset.name for asset in assets.list(**which)]
        for which in (
            {"name": "cat"},
            {"asset_type": [AssetType.LORA, AssetType.CHECKPOINT], "data_type": DataType.FP16, "is_public": False},
            {"engine": [BaseEngine("image/stable-diffusion-xl-v1-0")]},
        )
    ]
    said["public"] = sorted(asset.name for asset in assets.list(is_public=True, owner="octoai"))
    said["lost upload"] = failure(lambda: with_a_lost_put(assets, picture))

    tune = tunes.create("cats", CHECKPOINT, {cat: "a cat, sks"}, "sks", 10, seed=2**32 - 1)
    said["created"] = tune.to_dict()
    said["got"] = tunes.get(tune.id).to_dict() == tune.to_dict()
    said["listed"] = [
        [found.total, found.has_more, [one.name for one in found.data]]
        for found in (
            tunes.list(),
            tunes.list(1, 0, "cats", "lora_tune", CHECKPOINT, "sks"),
            tunes.list(trigger_words=["dog"]),
        )
    ]
    said["cancelled"] = [tunes.cancel(tune.id).status.value for _ in range(2)]
    said["deleted"] = tunes.delete(tune.id)

    said["unknown tune"] = failure(lambda: tunes.get(tune.id))
    said["wrong tune"] = failure(lambda: tunes.create("wrong", CHECKPOINT, ["asset_unknown"], "sks", 10))
    said["wrong key"] = failure(lambda: AssetOrchestrator(token="ts_wrong", endpoint=url).list())
    said["dropped"] = assets.delete(cat.id).id == cat.id
    said["weights"] = assets.create(
        CheckpointData("image/stable-diffusion-xl-v1-0", "safetensors"), "big", url=None, file=picture
    ).status
    return said


def with_a_lost_put(assets: AssetOrchestrator, picture: str) -> None:
    """Uploads over a network that loses the PUT."""
    put = httpx.put
    httpx.put = lambda url, **kwargs: httpx.Response(502)
    try:
        assets.create(FileData("png"), "lost", file=picture)
    finally:
        httpx.put = put


def failure(call: Callable[[], Any]) -> list[Any]:
    """The SDK's own error: its class, its status, its body as the SDK has read it."""
    try:
        call()
    except Exception as exc:  # what is raised is what is asked
        body = exc.data.to_dict() if getattr(exc, "data", None) is not None else getattr(exc, "body", None)
        return [type(exc).__name__, getattr(exc, "status", None), body]
    return ["nothing was raised", None, None]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))

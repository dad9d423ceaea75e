"""A client of the HTTP API: pictures up, a tune, its events, the LoRA down. Knows nothing but the API (docs/api.md).

POST /v1/assets                        an asset and a signed URL for its bytes        upload
PUT  <signed URL>
POST /v1/assets/{id}/complete-upload   the service looks at the picture
POST /v1/tune                                                                         tune
GET  /v1/tune/{id}/events              what goes on, as it happens                    watch
GET  /v1/tune/{id}                     what came out                                  lora
GET  /v1/assets/{id}                   a signed URL for the LoRA's bytes              download
GET  <signed URL>
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from examples.demo.failure import DemoFailed

TIMEOUT = 60.0  # seconds without a byte; a quiet event stream sends an empty line every 15
SILENCE = 180.0  # seconds without an event; loading a large base may take a minute
RETRIES = 5  # of a broken event stream before the next event comes
PAUSE = 1.0  # seconds before each
ENDED = ("succeeded", "failed", "cancelled")


class Client:
    """Speaks to one service.

    Args:
        http: Knows the service's URL and sends the API key with each request; see `connect`.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def upload(self, picture: Path) -> str:
        """Stores a picture; returns its asset's id.

        Raises:
            DemoFailed: It was refused; why, stands in the message.
        """
        request = {"asset_type": "file", "name": picture.stem, "data": {"asset_type": "file"}}
        created = _answer(self._http.post("/v1/assets", json=request))
        # The URL is signed: it wants no key, and must not be sent one, for it may lead to another host.
        _accept(httpx.put(created["transfer_api"]["put_url"], content=picture.read_bytes(), timeout=TIMEOUT))
        asset_id: str = created["asset"]["id"]
        _accept(self._http.post(f"/v1/assets/{asset_id}/complete-upload", json={}))
        asset = _answer(self._http.get(f"/v1/assets/{asset_id}"))["asset"]
        if asset["status"] != "ready":
            raise DemoFailed(f"the service refused {picture}: {asset['status_details']}")
        return asset_id

    def tune(self, name: str, captions: Mapping[str, str], trigger: str, steps: int, seed: int) -> str:
        """Asks for a tune of tiny-shapes; returns its id. captions: by the id of their picture's asset."""
        details = {
            "tune_type": "lora_tune",
            "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
            "files": [{"file_id": file_id, "caption": caption} for file_id, caption in captions.items()],
            "trigger_words": [trigger],
            "steps": steps,
            "seed": seed,  # the same pictures, captions and seed give the same LoRA
        }
        created = _answer(self._http.post("/v1/tune", json={"name": name, "details": details}))
        tune_id: str = created["id"]
        return tune_id

    def watch(self, tune_id: str) -> Iterator[dict[str, Any]]:
        """The tune's events as they come, until it has ended. A broken stream is taken up where it broke off.

        Raises:
            DemoFailed: Nothing has happened for long, or the service is gone.
        """
        last_id, heard, broken = 0, time.monotonic(), 0
        while True:
            try:
                for event in self._stream(tune_id, last_id):
                    if event is not None:
                        last_id, heard, broken = event["id"], time.monotonic(), 0
                        yield event["event"]
                        if event["event"].get("status") in ENDED:
                            return
                    elif time.monotonic() - heard > SILENCE:
                        raise DemoFailed(f"nothing has happened to the tune for {SILENCE:.0f} s")
                why = "it ended before the tune did"
            except httpx.TransportError as error:
                why = str(error)
            broken += 1
            if broken > RETRIES:
                raise DemoFailed(f"the event stream broke {broken} times in a row: {why}")
            time.sleep(PAUSE)

    def _stream(self, tune_id: str, after: int) -> Iterator[dict[str, Any] | None]:
        """One request for the events after an id: a JSON object a line, or None where a line only keeps it alive."""
        headers = {"Accept": "application/x-ndjson", "Last-Event-ID": str(after)}
        with self._http.stream("GET", f"/v1/tune/{tune_id}/events", headers=headers) as response:
            if not response.is_success:
                response.read()
                _accept(response)
            for line in response.iter_lines():
                told = json.loads(line) if line else None
                if told and "error" in told:  # the last line of a stream that the service breaks off
                    raise httpx.RemoteProtocolError(told["error"]["detail"])
                yield told

    def lora(self, tune_id: str) -> str:
        """The id of the LoRA that a tune made.

        Raises:
            DemoFailed: It ended without one.
        """
        tune = _answer(self._http.get(f"/v1/tune/{tune_id}"))
        if tune["status"] != "succeeded":
            raise DemoFailed(f"the tune has {tune['status']}: {tune['status_details']}")
        lora_id: str = tune["output_lora_ids"][0]
        return lora_id

    def download(self, asset_id: str, file: Path) -> int:
        """Fetches an asset by its signed URL into a file; returns its size in bytes."""
        url = _answer(self._http.get(f"/v1/assets/{asset_id}"))["transfer_api"]["get_url"]
        return file.write_bytes(_accept(httpx.get(url, timeout=TIMEOUT)).content)


def connect(url: str, key: str) -> httpx.Client:
    """What `Client` speaks through."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT)


def _answer(response: httpx.Response) -> dict[str, Any]:
    answer: dict[str, Any] = _accept(response).json()
    return answer


def _accept(response: httpx.Response) -> httpx.Response:
    """Every refusal is JSON: a sentence, or for 422 a list of all that is wrong, each with its place."""
    if response.is_success:
        return response
    request = response.request
    raise DemoFailed(f"{request.method} {request.url.path} was answered {response.status_code}: {_why(response)}")


def _why(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):  # not the service's own answer: a proxy's, say
        return response.text[:200]
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in detail)

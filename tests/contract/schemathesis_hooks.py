"""What schemathesis cannot know from the document: which files there are, and which keys must agree. Loaded by
schemathesis' own process, by way of test_schemathesis.py; only requests that are meant to be accepted are touched."""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Lets a body that is right by its schema name what exists."""
    if case.path_parameters.get("id") in (os.environ["TUNESMITH_FILE"], os.environ["TUNESMITH_FILE_NAME"]):
        case.path_parameters["id"] = "asset_none"  # or a later tune would name a file that was deleted
    body: Any = case.body
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE or not isinstance(body, dict):
        return
    operation: Any = case.operation
    name = operation.definition.raw["operationId"]
    if name == "CreateTune":
        body["details"] |= {
            "files": [{"file_id": os.environ["TUNESMITH_FILE"]}],
            "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
        }
        # Beside the body they would contradict it, or say that it came before with another one.
        for key in ("validate_only", "request_id"):
            body.pop(key, None)
        case.headers.pop("Idempotency-Key", None)
    elif name == "CreateAsset":
        body["asset_type"] = body["data"]["asset_type"]
        for key in ("url", "hf_repo", "hf_token_secret", "is_public"):  # not configured here, not for this tenant
            body.pop(key, None)

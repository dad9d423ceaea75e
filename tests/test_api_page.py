"""docs/api.md tells every reason that the code can say, the status of each, and the bounds: read out of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grpc

from gateway.http.locations import TYPES
from gateway.http.requests import Limits
from gateway.rules import reason_of
from gateway.status import HTTP, STORE
from store import errors

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs/api.md").read_text()
REASONS = PAGE[PAGE.index("\n## Reasons\n") : PAGE.index("\n## Another transcoder\n")]

WORD = re.compile(r"(?=.{3})[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")

#: What looks like a reason, and is none that a caller is told.
OTHER_WORDS = {
    "verbs": {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"},
    "formats of pictures": {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "RGB", "RGBA", "TIFF", "WEBP"},
    "formats of numbers": {"BF16", "BOOL", "C64", "F16", "F32", "F64", "I16", "I32", "I64", "U16", "U32", "U64"},
    "formats of fewer bits": {"F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0"},
    "what a database is told": {"AUTOCOMMIT", "CASCADE"},
    "settings": {"CERTIFICATE", "CHANNEL_OPTIONS", "HTTP_TLS", "KEY", "TLS"},
    "the metrics' words for what went well": {"ACCEPTED", "FETCHED"},
    "words of the trainers' protocol": {"ABORT", "ALREADY_RECORDED", "CONTINUE", "RECORDED", "SEND_RESULT", "STALE"},
    "why a trainer's stream ends": {
        *{"DUPLICATE_TRAINER", "GOING_AWAY", "NO_HELLO", "OTHER_TRAINER", "PROTOCOL_BREACH", "REPORT_UNTRUE"},
        *{"SESSION_REPLACED", "TOKEN_INVALID", "TOO_MANY_REPORTS"},
    },
}
ENVIRONMENT = re.compile(r"(TUNESMITH|AWS|CUBLAS|GRPC|GOMP|OMP|SC|LC)(_\w+)?|LANG|PATH|PYTHONPATH")


def trees() -> Iterator[ast.Module]:
    """What a request or a tune comes by: not the command line."""
    for package in ("gateway", "store", "trainer"):
        for path in (REPOSITORY / package).rglob("*.py"):
            if not {"cli", "migrations", "bases"} & set(path.parts):
                yield ast.parse(path.read_text())


def words_of_the_code() -> set[str]:
    """Those in Python, and the ids of our own rules in the protos of callers."""
    nodes = (node for tree in trees() for node in ast.walk(tree))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for path in (REPOSITORY / "protos" / "tunesmith" / "v1").glob("*.proto"):
        strings |= {reason_of(id) for id in re.findall(r'^ +id: "(.+)"$', path.read_text(), re.MULTILINE)}
    return {string for string in strings if WORD.fullmatch(string) and not ENVIRONMENT.fullmatch(string)}


def refusals() -> Iterator[tuple[str, int]]:
    """(reason, HTTP status) of each `Refusal(grpc.StatusCode.X, "REASON", ...)`, and of the store's errors."""
    for node in (node for tree in trees() for node in ast.walk(tree)):
        match node:
            case ast.Call(
                func=ast.Name(id="Refusal"),
                args=[ast.Attribute(attr=code), ast.Constant(value=str(reason)), *_],
                keywords=keywords,
            ):
                said = {keyword.arg: keyword.value for keyword in keywords}.get("http_status")
                if said is None:
                    yield reason, HTTP[grpc.StatusCode[code]]
                elif isinstance(said, ast.Constant) and isinstance(said.value, int):
                    yield reason, said.value
    kinds: list[type[errors.StoreError]] = [errors.StoreError, *errors.StoreError.__subclasses__()]
    for kind in kinds:
        yield kind.reason, HTTP[STORE[kind]]


def test_every_reason_that_the_code_can_say_stands_on_the_page_and_no_other() -> None:
    words = words_of_the_code()
    others = set().union(*OTHER_WORDS.values())

    told = {word for word in re.findall(r"`([A-Z][A-Z0-9_]+)`", REASONS) if word not in TYPES}

    assert told - {"DEADLINE_EXCEEDED", "UNIMPLEMENTED"} == words - others - set(TYPES)
    assert others <= words, "what the code says no more needs no exception"


def test_each_refusal_has_the_status_that_the_page_says() -> None:
    rows = re.findall(r"^\| (`[A-Z].*`) \| (\d{3}) \|", REASONS, re.MULTILINE)
    told = {word: int(status) for words, status in rows for word in re.findall(r"\w+", words)}
    for_trainers = OTHER_WORDS["why a trainer's stream ends"]
    found = {(reason, status) for reason, status in refusals() if reason not in for_trainers}

    assert len(found) > 25
    assert {(reason, status) for reason, status in found if told.get(reason) != status} == set()


def test_patience_on_the_page_is_the_gateways() -> None:
    limits = Limits()

    assert limits.call_seconds == 5 * 60
    assert "| the answer took longer than five minutes | `DEADLINE_EXCEEDED` | 504 |" in PAGE
    assert (limits.body_bytes, limits.depth) == (4 * 2**20, 64)
    assert "A JSON body and a gRPC message may have 4 MiB" in PAGE
    assert "JSON 64 levels" in PAGE

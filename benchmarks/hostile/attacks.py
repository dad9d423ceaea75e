"""What hostile callers send: each attack as bytes for a socket, with the answers that docs/api.md promises. Pure, by a
random generator; knows no socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

CUT_OFF = 0  # stands for a status where the server may just hang up


@dataclass(frozen=True)
class Target:
    """What the attackers know of the service."""

    key: str
    """A valid API key: the worst of them have one."""
    file_id: str
    """A picture of that key's tenant."""
    put_path: str
    """Where that tenant may PUT a picture: path and query of a signed URL."""


@dataclass(frozen=True)
class Attack:
    """One hostile request."""

    kind: str
    sent: Sequence[bytes]
    """In this order; where `held`, all of it at once and then nothing."""
    statuses: frozenset[int]
    """Any of these is a good answer."""
    door: str = "http"
    """Or "grpc"."""
    held: bool = False
    """The connection is kept open, and never finished."""


def attack(random: Random, target: Target) -> Attack:
    """One attack of any kind."""
    make, statuses = random.choices(list(KINDS.values()), [weight for _, _, weight in _TABLE])[0]
    made = make(random, target)
    kind = next(name for name, (maker, _) in KINDS.items() if maker is make)
    if isinstance(made, Attack):
        return Attack(kind, made.sent, frozenset(statuses), made.door, made.held)
    return Attack(kind, [made], frozenset(statuses))


def request(verb: str, path: str, body: bytes = b"", *, key: str | None = None, **headers: str) -> bytes:
    """One HTTP request."""
    lines = [f"{verb} {path} HTTP/1.1", "Host: gateway", "Connection: close", f"Content-Length: {len(body)}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def create(target: Target, body: bytes) -> bytes:
    """POST /v1/tune with a good key."""
    return request("POST", "/v1/tune", body, key=target.key, Content_Type="application/json")


def _tune(target: Target, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    details = {
        "tune_type": "lora_tune",
        "base_checkpoint": {"checkpoint_id": "tunesmith:tiny-shapes"},
        "files": [{"file_id": target.file_id}],
        "steps": 10,
        "trigger_words": ["sks"],
    }
    return {"name": "hostile", "details": {**details, **changes}}


def _bad_json(random: Random, target: Target) -> bytes:
    whole = json.dumps(_tune(target)).encode()
    return create(target, whole[: random.randrange(1, len(whole) - 1)])


def _wrong_types(random: Random, target: Target) -> bytes:
    wrong: list[Any] = [None, True, -1, 1e308, 10**40, "ten", [], {}, [[]], {"a": []}, "\ud800", "\0"]
    keys = ("base_checkpoint", "files", "steps", "trigger_words", "seed", "resize_images", "hyperparameters")
    changes = {name: random.choice(wrong) for name in keys} | {"steps": "ten"}
    return create(target, json.dumps(_tune(target, **changes)).encode())


def _not_json(random: Random, target: Target) -> bytes:
    body = random.choice(
        [b'{"name": NaN}', b'{"steps": Infinity}', b"\xff\xfe", b'{"a": 1' + b"0" * 9000 + b"}", b"\0" * 100]
    )
    return create(target, body)


def _deep(random: Random, target: Target) -> bytes:
    opening = random.choice([b"[", b'{"a":', b'[{"a":'])
    return create(target, opening * random.choice([100, 10_000, 100_000]))


def _many_files(random: Random, target: Target) -> bytes:
    return create(target, json.dumps(_tune(target, files=[{"file_id": str(n)} for n in range(10_000)])).encode())


def _names(random: Random, target: Target) -> bytes:
    name = random.choice(["", "../" * 9, "x" * 10_000, "a\0b", "a/b", "..", "a\r\nb", "%2e%2e"])
    return create(target, json.dumps({**_tune(target), "name": name}).encode())


def _anothers_ids(random: Random, target: Target) -> bytes:
    ids = [f"asset_{random.getrandbits(128):026x}"[:32] for _ in range(50)]
    return create(target, json.dumps(_tune(target, files=[{"file_id": each} for each in ids])).encode())


def _bad_key(random: Random, target: Target) -> bytes:
    return request("GET", "/v1/tunes", key=f"ts_{random.getrandbits(256):064x}")


def _no_key(random: Random, target: Target) -> bytes:
    return request("POST", "/v1/tune", b"[" * random.randrange(1, 1000), Content_Type="application/json")


def _huge_body(random: Random, target: Target) -> Attack:
    head = request("POST", "/v1/tune", key=target.key, Content_Type="application/json")
    declared = head.replace(b"Content-Length: 0", b"Content-Length: 100000000000")
    chunked = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    piece = b"%x\r\n%s\r\n" % (2**18, b" " * 2**18)
    return Attack("", random.choice([[declared], [chunked, *[piece] * 20]]), frozenset())


def _large_body(random: Random, target: Target) -> bytes:
    """Just small enough to be read: what it costs is ours to bear."""
    return create(target, json.dumps({**_tune(target), "description": "x" * 3_500_000}).encode())


def _huge_headers(random: Random, target: Target) -> bytes:
    return request("GET", "/v1/tunes", key=target.key, X_Pad="x" * random.choice([70_000, 200_000]))


def _no_http(random: Random, target: Target) -> bytes:
    return random.choice([b"\x16\x03\x01\x02\x00\x01", random.randbytes(100) + b"\r\n\r\n", b"GET\r\n\r\n", b"\0" * 99])


def _unknown_path(random: Random, target: Target) -> bytes:
    path = random.choice(["/v2/tune", "/v1/tune/a/b/c", "/.env", "/v1/%2e%2e/%2e%2e/etc/passwd", "/" + "a" * 5000])
    return request("GET", path, key=target.key)


def _wrong_verb(random: Random, target: Target) -> bytes:
    return request(random.choice(["PUT", "PATCH", "TRACE"]), "/v1/tunes", key=target.key)


def _wrong_content_type(random: Random, target: Target) -> bytes:
    return request("POST", "/v1/tune", b"<a/>", key=target.key, Content_Type="text/xml")


def _forged_url(random: Random, target: Target) -> bytes:
    verb = random.choice(["GET", "PUT"])
    path = f"/v1/objects/assets/{target.file_id}/x?expires=99999999999&signature={random.getrandbits(256):064x}"
    return request(verb, path, random.randbytes(1000) if verb == "PUT" else b"")


def _slow(random: Random, target: Target) -> Attack:
    head = request("POST", "/v1/tune", key=target.key, Content_Type="application/json")
    begun = head.replace(b"Content-Length: 0", b"Content-Length: 1000") + b'{"name": '
    return Attack("", [random.choice([begun, head[: random.randrange(1, 60)], b""])], frozenset(), held=True)


def _slow_upload(random: Random, target: Target) -> Attack:
    """What came of it is held in memory until it goes on."""
    length = random.choice([b"Content-Length: 50000000", b"Transfer-Encoding: chunked"])
    head = request("PUT", target.put_path).replace(b"Content-Length: 0", length)
    size = random.randrange(1, 900_000)  # less than what is written to the disk at once
    chunk = b"" if length.startswith(b"Content") else b"%x\r\n" % 2_000_000
    return Attack("", [head + chunk + bytes(size)], frozenset(), held=True)


def _grpc_garbage(random: Random, target: Target) -> Attack:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings, junk = b"\0\0\0\x04\0\0\0\0\0", random.randbytes(200)
    return Attack("", [random.choice([junk, preface + junk, preface + settings + junk])], frozenset(), door="grpc")


_Maker = Callable[[Random, Target], bytes | Attack]
#: Maker, good answers, how often against the others. Wrong keys are soon answered 429 instead of 401.
_TABLE: list[tuple[_Maker, set[int], float]] = [
    (_bad_json, {422}, 10),
    (_wrong_types, {422}, 10),
    (_not_json, {422}, 10),
    (_deep, {422}, 10),
    (_many_files, {422}, 1),
    (_names, {422}, 5),
    (_anothers_ids, {422}, 5),
    (_bad_key, {401, 429}, 15),
    (_no_key, {401}, 10),
    (_huge_body, {413, CUT_OFF}, 1),  # an answer sent while bytes still come may be lost on its way
    (_large_body, {422}, 0.25),
    (_huge_headers, {431, CUT_OFF}, 3),
    (_no_http, {400}, 5),
    (_unknown_path, {404}, 5),
    (_wrong_verb, {405, 400}, 3),
    (_wrong_content_type, {415}, 3),
    (_forged_url, {403}, 3),
    (_slow, {408, CUT_OFF}, 2),
    (_slow_upload, {408, CUT_OFF}, 0.5),  # seldom: a tenant that has taken its share of memory is answered 503
    (_grpc_garbage, {CUT_OFF}, 5),
]
KINDS: dict[str, tuple[_Maker, set[int]]] = {
    maker.__name__.strip("_"): (maker, statuses) for maker, statuses, _ in _TABLE
}

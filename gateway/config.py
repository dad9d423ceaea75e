"""The gateway's settings, read once from the environment: TUNESMITH_DATABASE_URL and so on. Called by `__main__`;
everything else gets plain values."""

from __future__ import annotations

import difflib
import itertools
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from store.database import parsed
from store.objects import s3
from store.tenants import LEAST_RATE, MOST_RATE

PREFIX = "TUNESMITH_"
SECRET = {"database_url", "signing_secret", "objects_url"}  # an address may carry a password
#: Hosts that stand for all of this machine's addresses, of IPv4 and IPv6.
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104  - compared, not bound


class ConfigError(ValueError):
    """A setting is wrong; the message has a line for each, with its key, its value and what was wanted."""


class Faults:
    """Around each of several settings that are tried, as in `with faults:`. What is wrong with them is told at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __enter__(self) -> None:
        """Tries one."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        """Keeps what is wrong with it, and goes on."""
        if not isinstance(error, ConfigError):
            return False
        self._lines.append(str(error))
        return True

    def tell(self) -> None:
        """Raises ConfigError where anything was wrong."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))


class SpanningError(ValueError):
    """Settings that are each right by themselves do not go together."""

    def __init__(self, faults: Sequence[tuple[set[str], str]]) -> None:
        super().__init__("\n".join(line for _, line in faults))
        #: The names of those that a fault is of, and its line.
        self.faults = faults


@dataclass(frozen=True)
class Address:
    """Where a server listens. Port 0 picks a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Address:
        """Reads `host:port` or `[::1]:port`."""
        if isinstance(text, Address):
            return text
        host, separator, port = str(text).rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("wanted HOST:PORT, such as 127.0.0.1:8080")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_taken_by(self, other: Address) -> bool:
        """Whether a server that listens there leaves no room for one here."""
        if self.port != other.port or self.port == 0:
            return False
        hosts = {self.host, other.host}
        is_everywhere = bool(hosts & EVERYWHERE) and (":" in self.host) == (":" in other.host)
        return len(hosts) == 1 or is_everywhere


def _networks(text: object) -> object:
    """Reads `10.0.0.0/8,fd00::/8`."""
    if not isinstance(text, str):
        return text
    try:
        return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError as exc:
        raise ValueError(f"wanted networks such as 10.1.0.0/16,fd00::/8, separated by commas: {exc}") from exc


Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]
Listen = Annotated[Address, NoDecode, BeforeValidator(Address.parse)]


class Settings(BaseSettings):
    """All that can be set. Each is TUNESMITH_ and the name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    #: Tunes, assets, keys; the queue too.
    database_url: SecretStr = Field(description="sqlite:////ABSOLUTE/FILE.db or postgresql://USER:PASSWORD@HOST/NAME")
    #: Connections to PostgreSQL, beside the two kept for heartbeats and wake-ups.
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    #: Pictures, checkpoints, snapshots and LoRAs.
    objects_url: SecretStr = Field(description="file:///ABSOLUTE/FOLDER or s3://BUCKET[/PREFIX]")
    #: Signs the URLs of objects; the same for all gateways.
    signing_secret: SecretStr = Field(description="at least 16 characters, hard to guess")

    #: Where callers reach HTTP, as signed URLs will say. Unset: the address that HTTP is bound to.
    public_url: str | None = None
    #: HTTP/JSON API and signed URLs.
    http: Listen = Address("127.0.0.1", 8080)
    #: gRPC API, for callers and trainers.
    grpc: Listen = Address("127.0.0.1", 50051)
    #: Prometheus. An address of its own, since it asks for no key.
    metrics: Listen = Address("127.0.0.1", 9090)
    #: PEM files of the gRPC server's certificate, with its chain, and key. Unset: plain text. Renewed files are taken
    #: up with the next connection.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    #: PEM file of the authority that signs trainers' certificates. With it gRPC is for those alone who show one, whose
    #: common name is the trainer's id and which need no join token; callers come by HTTP, or with a certificate too.
    tls_client_ca: Path | None = None
    #: The same for HTTP. Unset: plain text, as behind a proxy that has a certificate.
    http_tls_certificate: Path | None = None
    http_tls_key: Path | None = None

    #: Networks that this service may ask for callers' or tenants' URLs though they are not public: webhooks within the
    #: company, or pictures of its own site. Whoever may name a URL reaches all that is there.
    outbound_allow: Networks = Field(default=(), description="networks such as `10.1.0.0/16,fd00::/8`")
    #: Networks that it never asks, though they are public or allowed: in a container, the public addresses of the
    #: container's host, and whatever else lies behind no firewall from there.
    outbound_deny: Networks = Field(default=(), description="networks such as `198.51.100.7,2001:db8::/32`")

    #: This replica's name in the log and in the trainers' table. Unset: the host's name and a random suffix.
    gateway_id: str = Field(default_factory=lambda: f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", min_length=1)
    #: Length of a lease.
    lease_seconds: float = Field(default=45.0, ge=1, le=3600)
    #: Time between two beats of a trainer; at most a third of the lease.
    heartbeat_seconds: float = Field(default=5.0, ge=0.1, le=600)
    #: Time that open calls get to end after SIGTERM.
    grace_seconds: float = Field(default=3.0, ge=0, le=600)

    #: Time between two rounds that delete the objects that nobody needs any more, and thin what is kept.
    sweep_seconds: float = Field(default=3600.0, ge=0.1, le=7 * 86400)
    #: An object that nobody needs any more lies for so long before it is deleted.
    leftover_seconds: float = Field(default=86400.0, ge=0)
    #: For so long an upload may wait to be completed; then it is deleted.
    upload_seconds: float = Field(default=86400.0, ge=1)

    #: Days from a tune's end until its step metrics are thinned: each tenth step stays, and the last of each event.
    metrics_days: float = Field(default=30.0, ge=0)
    #: Days from the deletion of a picture, checkpoint or LoRA until its bytes are deleted too, unless a live tune
    #: reads them. Unset: never.
    deleted_asset_days: float | None = Field(default=None, ge=1)
    #: Days from an API key's end until its row is erased. Unset: never.
    ended_key_days: float | None = Field(default=None, ge=0)
    #: Days from a webhook's delivery, or from when it was given up or its endpoint disabled, until it leaves the log;
    #: one sent again stays so long after that.
    webhook_days: float = Field(default=30.0, ge=0)

    #: Requests a second that each gateway answers one tenant, ten seconds' worth of them at once, where `tunesmith
    #: tenant set --rate` says nothing else. A stream is one request. Beyond it: 429.
    requests_per_second: float = Field(default=200.0, ge=LEAST_RATE, le=MOST_RATE)
    #: Streams of events that one tenant may have open at once, at each gateway.
    streams_per_tenant: int = Field(default=1000, ge=1)
    #: Proxies before HTTP whose X-Forwarded-For is believed: addresses or networks, separated by commas. Behind another
    #: one all strangers count as one, when wrong keys and connections are counted.
    trusted_proxies: str = "127.0.0.1,::1"

    #: A TOML file of further public checkpoints; see gateway/catalogue.toml.
    catalogue: Path | None = None
    #: Largest picture, bytes.
    max_picture_bytes: int = Field(default=64 * 2**20, ge=1024)
    #: Largest checkpoint or other weights, bytes; in S3 at most 83886080000.
    max_weights_bytes: int = Field(default=32 * 2**30, ge=1024)
    #: Largest picture, width times height.
    max_picture_pixels: int = Field(default=120_000_000, ge=1024)
    #: Memory that uploads on their way through a gateway may take, bytes, half of it those of one tenant. One takes
    #: twice its size, at most 3 MiB into a folder and 72 MiB into S3; where no length is said 3 MiB, and 16 MiB into S3
    #: until 8 MiB have come. Beyond it they wait, 64 of a tenant, soon 503.
    upload_memory_bytes: int = Field(default=512 * 2**20, ge=160 * 2**20)
    #: Processes that judge uploads.
    judges: int = Field(default=2, ge=1, le=64)

    #: on: callers may have assets fetched from a URL of theirs.
    fetch: bool = False
    #: https://HOST of the Hugging Face hub that hf_repo names repositories of, the one that trainers use (HF_ENDPOINT).
    #: Unset: hf_repo is refused.
    hub_url: str | None = None

    #: JSON with the bound addresses is written there once everything is served.
    ready_file: Path | None = None
    #: console is for people, json for machines.
    log_format: Literal["console", "json"] = "console"
    #: Least level that is logged.
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("public_url")
    @classmethod
    def _whole_url(cls, url: str | None) -> str | None:
        if url and not (_is_base(url, "http") or _is_base(url, "https")):
            raise ValueError("wanted http://HOST[:PORT] or https://HOST[:PORT], without a user or password")
        return url.rstrip("/") if url else None

    @field_validator("hub_url")
    @classmethod
    def _encrypted_url(cls, url: str | None) -> str | None:
        # It says which weights are fetched, and is shown tokens. On loopback nobody stands in between.
        if url and not (_is_base(url, "https") or (_is_base(url, "http") and _is_loopback(urlsplit(url).hostname))):
            wanted = "wanted https://HOST[:PORT], or http://HOST[:PORT] of a loopback address"
            raise ValueError(f"{wanted}, without a user or password")
        return url.rstrip("/") if url else None

    @field_validator("database_url")
    @classmethod
    def _sqlite_or_postgresql(cls, url: SecretStr) -> SecretStr:
        parsed(url.get_secret_value())
        return url

    @field_validator("objects_url")
    @classmethod
    def _folder_or_bucket(cls, url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme == "s3":
            s3.location(url.get_secret_value())
        elif parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
            raise ValueError("wanted file:///ABSOLUTE/FOLDER or s3://BUCKET[/PREFIX]")
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, text: str) -> str:
        for each in filter(None, map(str.strip, text.split(","))):
            try:
                ip_network(each)
            except ValueError as exc:
                raise ValueError(f"{each!r}: wanted addresses or networks, such as 10.0.0.7,10.1.0.0/16") from exc
        return text

    @field_validator("ready_file")
    @classmethod
    def _writable(cls, path: Path | None) -> Path | None:
        if path is not None and (fault := fault_of_ready_file(path)) is not None:
            raise ValueError(fault)
        return path

    @field_validator("signing_secret")
    @classmethod
    def _long_secret(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value()
        if len(text) < 16:
            raise ValueError("wanted at least 16 characters")
        if not text.strip() or len(set(text)) == 1:
            raise ValueError("wanted characters that are hard to guess, such as of `openssl rand -hex 32`")
        return secret

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if faults := list(_spanning(self)):
            raise SpanningError(faults)
        return self


def _spanning(settings: Settings) -> Iterator[tuple[set[str], str]]:
    """What is wrong with settings beside one another: their names, and a line."""
    lease, beat = settings.lease_seconds, settings.heartbeat_seconds
    if beat * 3 > lease:
        wanted = f"wanted at most a third of {PREFIX}LEASE_SECONDS={lease:g}, so that two lost beats cost no lease"
        yield {"heartbeat_seconds", "lease_seconds"}, f"{PREFIX}HEARTBEAT_SECONDS={beat:g}: {wanted}"
    most = settings.max_weights_bytes
    if urlsplit(settings.objects_url.get_secret_value()).scheme == "s3" and most > s3.LARGEST:
        wanted = f"wanted at most {s3.LARGEST} where objects lie in S3, which takes no more parts of one"
        yield {"objects_url", "max_weights_bytes"}, f"{PREFIX}MAX_WEIGHTS_BYTES={most}: {wanted}"
    for one, two in itertools.combinations(("http", "grpc", "metrics"), 2):
        first, second = getattr(settings, one), getattr(settings, two)
        if second.is_taken_by(first):
            wanted = f"wanted another address or port than {PREFIX}{one.upper()}={first}"
            yield {one, two}, f"{PREFIX}{two.upper()}={second}: {wanted}"
    for name, others in _TOGETHER.items():
        missing = [other for other in others if not getattr(settings, other)]
        if getattr(settings, name) and missing:
            wanted = " and ".join(PREFIX + other.upper() + ("=on" if other == "fetch" else "") for other in missing)
            yield {name, *others}, f"{PREFIX}{name.upper()}={getattr(settings, name)}: wanted {wanted} with it"


#: Setting -> those that it wants with it.
_TOGETHER = {
    "hub_url": ("fetch",),
    "tls_certificate": ("tls_key",),
    "tls_key": ("tls_certificate",),
    "http_tls_certificate": ("http_tls_key",),
    "http_tls_key": ("http_tls_certificate",),
    "tls_client_ca": ("tls_certificate", "tls_key"),
}


def _is_base(url: str, scheme: str) -> bool:
    """Whether paths can be put after it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return (
        parts.scheme == scheme and bool(parts.hostname) and not ("@" in parts.netloc or parts.query or parts.fragment)
    )


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def fault_of_ready_file(path: Path) -> str | None:
    """Why it could not be written once all is ready, when it would be too late to say so; None: it can."""
    folder = path.absolute().parent
    if not (os.access(folder, os.W_OK | os.X_OK) and folder.is_dir()):
        return f"wanted a file in a folder that is there and may be written to, which {folder} is not"
    return "wanted a file, and it is a folder" if path.is_dir() else None


def read() -> Settings:
    """Reads the environment.

    Raises:
        ConfigError: One or more settings are wrong or missing.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # the environment gives those without a default
    except ValidationError as exc:
        # `from None`: pydantic's own text shows the values, and one of them may be a secret.
        errors = exc.errors()
        wrong = {str(error["loc"][0]) for error in errors if error["loc"]}
        lines = [describe(error) for error in errors] + (_between_others(wrong) if wrong else [])
        lines += [unknown(*each) for each in misspelt().items()]  # it may be why another one is not set
        raise ConfigError("\n".join(lines)) from None


def _between_others(wrong: set[str]) -> list[str]:
    """What is wrong between settings that are right by themselves, with which pydantic does not begin while any is not:
    each of the wrong ones is given as it could be.
    """
    given = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in wrong}
    try:
        Settings(**{**given, **{name: sound for name, sound in _SOUND.items() if name in wrong}})
    except ValidationError as exc:
        spanning = [error["ctx"]["error"] for error in exc.errors()]
        return [line for error in spanning for names, line in error.faults if not names & wrong]
    return []


#: Of the settings that have no default.
_SOUND = {"database_url": "sqlite:////x", "objects_url": "file:///x", "signing_secret": "0123456789abcdef"}


def describe(error: ErrorDetails) -> str:
    """One wrong setting as a line."""
    if not error["loc"]:
        return _wanted(error)
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{PREFIX}{name.upper()} is not set: wanted {Settings.model_fields[name].description}"
    # A URL that has a password where none is wanted is no less a secret.
    is_secret = name in SECRET or (name.endswith("_url") and "@" in str(error["input"]))
    value = "(not shown)" if is_secret else repr(error["input"])
    is_outside = error["type"] in ("greater_than_equal", "less_than_equal", "finite_number")
    wanted = f"wanted {allowed(Settings.model_fields[name])}" if is_outside else _wanted(error)
    return f"{PREFIX}{name.upper()}={value}: {wanted}"


def allowed(field: FieldInfo) -> str:
    """Both bounds of a number: pydantic tells the first that it meets, and that not-a-number is beyond it."""
    bounds = {name: getattr(one, name) for one in field.metadata for name in ("ge", "le") if hasattr(one, name)}
    return f"{bounds['ge']} to {bounds['le']}" if "le" in bounds else f"{bounds['ge']} and more"


def _wanted(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def unknown(wrong: str, right: str) -> str:
    """A misspelt key as a line."""
    return f"{wrong} is set, and no setting has that name; {right} has"


def misspelt(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Keys that are set and look like a misspelt setting, each with the setting. Other keys may be a trainer's."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    others = [key for key in environment if key.startswith(PREFIX) and key not in known]
    matches: dict[str, list[Any]] = {key: difflib.get_close_matches(key, known, 1, cutoff=0.9) for key in others}
    return {key: found[0] for key, found in matches.items() if found}

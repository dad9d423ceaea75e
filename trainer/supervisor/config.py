"""A trainer's settings, from TUNESMITH_* variables. Read once by trainer.__main__; knows nothing of what they steer."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import DirectoryPath, Field, FilePath, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "TUNESMITH_"


class ConfigError(ValueError):
    """A setting is wrong; the message has a line for each, with its key, its value and what was wanted."""


class Settings(BaseSettings):
    """What the operator says. Every field is TUNESMITH_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    gateways: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1:50051",)
    """Gateways to connect to, HOST:PORT, separated by commas; any one will do."""
    trainer_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Stable name of this trainer; the token's own."""
    trainer_token: str = Field(default="", repr=False)
    """Join token, "tt_..."; empty only where a client certificate names the trainer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine computes."""
    threads: int = Field(default=0, ge=0)
    """Threads of the engine; 0: it chooses by the cores there are."""
    data: Path = Path("tunesmith-trainer")
    """Folder of the cache, the spool and the work in hand; made where it is missing."""
    bases: DirectoryPath | None = None
    """Folder of diffusers folders that stand in for builtin checkpoints of their names."""
    configs: DirectoryPath | None = None
    """Folder of what single-file checkpoints lack: tokenizer and configs, in a folder for each engine."""
    metrics: str = "127.0.0.1:9102"
    """HOST:PORT of /metrics; port 0 picks a free one."""
    cache_bytes: int = Field(default=100_000_000_000, ge=0)
    """The cache is pruned to this size, least recently used files first; files in use stay."""
    grace: float = Field(default=20.0, gt=0)
    """Seconds after SIGTERM within which tunes are given back; then the process ends all the same."""
    step_deadline: float = Field(default=120.0, gt=0)
    """Least seconds that the engine may make no step before it counts as hung; slow tunes get more of themselves."""
    insecure: bool | None = None
    """True: no TLS. Unset: no TLS towards loopback addresses, TLS towards all others."""
    tls_ca: FilePath | None = None
    """PEM file of the authority that signed the gateways' certificates; unset: the system's."""
    tls_certificate: FilePath | None = None
    """PEM file of the client certificate, for mutual TLS."""
    tls_key: FilePath | None = None
    """PEM file of its key."""
    ready_file: Path | None = None
    """Written once the first gateway has said Welcome: JSON with the address of /metrics."""

    @field_validator("gateways", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("gateways")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [address for address in value if not _is_address(address)]
        if wrong or not value:
            said = f"{' and '.join(map(repr, wrong))} cannot be read; " if wrong else ""
            raise ValueError(f"{said}wanted HOST:PORT, such as 127.0.0.1:50051, separated by commas")
        return value

    @field_validator("metrics")
    @classmethod
    def _address(cls, value: str) -> str:
        if not _is_address(value):
            raise ValueError("wanted HOST:PORT, such as 127.0.0.1:9102")
        return value

    @field_validator("ready_file")
    @classmethod
    def _writable(cls, path: Path | None) -> Path | None:
        if path is not None and (fault := _fault_of_ready_file(path)) is not None:
            raise ValueError(fault)
        return path

    @model_validator(mode="after")
    def _go_together(self) -> Settings:
        if faults := list(_missing([name for name in _TOGETHER if getattr(self, name)])):
            raise ValueError("\n".join(faults))
        return self

    def is_plaintext(self, address: str) -> bool:
        """Whether a gateway is spoken to without TLS."""
        return _is_loopback(split_address(address)[0]) if self.insecure is None else self.insecure


#: Settings of which one asks whether another is given.
_TOGETHER = ("trainer_token", "tls_certificate", "tls_key")


def _missing(given: Collection[str]) -> Iterator[str]:
    """What is wrong between those of _TOGETHER that are given: whatever their values, so it is told beside these."""
    pair = ("tls_certificate", "tls_key")
    for name, other in (pair, pair[::-1]):
        if name in given and other not in given:
            yield f"{PREFIX}{name.upper()} is set: wanted {PREFIX}{other.upper()} with it"
    if "trainer_token" not in given and "tls_certificate" not in given:
        yield f"{PREFIX}TRAINER_TOKEN is empty: wanted a join token, or a client certificate"


def _fault_of_ready_file(path: Path) -> str | None:
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
        lines = [describe(error) for error in exc.errors()]
        if all(error["loc"] for error in exc.errors()):  # else pydantic has come to what does not go together
            lines += _missing([name for name in _TOGETHER if os.environ.get(PREFIX + name.upper())])
        lines += [unknown(*each) for each in misspelt().items()]  # it may be why another one is not set
        raise ConfigError("\n".join(lines)) from None  # pydantic's own text may show a secret


def describe(error: ErrorDetails) -> str:
    """One wrong setting as a line."""
    wanted = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return wanted
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{PREFIX}{name.upper()} is not set: wanted letters, digits, - and _, 64 at most"
    value = repr(error["input"])
    if "tt_" in value:  # a join token in another's place
        value, wanted = "(not shown)", wanted.split("; ")[-1]
    return f"{PREFIX}{name.upper()}={value}: {wanted}"


def unknown(wrong: str, right: str) -> str:
    """A misspelt key as a line."""
    return f"{wrong} is set, and no setting has that name; {right} has"


def misspelt(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Keys that are set and look like a misspelt setting, each with the setting. Other keys may be a gateway's, and
    its names are nearer to ours than a trainer's are to a gateway's.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    others = [key for key in environment if key.startswith(PREFIX) and key not in known]
    matches: dict[str, list[Any]] = {key: difflib.get_close_matches(key, known, 1, cutoff=0.92) for key in others}
    return {key: found[0] for key, found in matches.items() if found}


def split_address(address: str) -> tuple[str, int]:
    """ "127.0.0.1:50051" -> ("127.0.0.1", 50051)

    Raises:
        ValueError: It is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address; HOST:PORT was wanted, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def _is_address(text: str) -> bool:
    try:
        split_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

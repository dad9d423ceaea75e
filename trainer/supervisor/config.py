"""A trainer's settings, from TUNESMITH_* variables. Read once by trainer.__main__; knows nothing of what they steer."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """What the operator says. Every field is TUNESMITH_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="ignore", frozen=True, hide_input_in_errors=True)

    gateways: Annotated[tuple[str, ...], NoDecode] = Field(default=("127.0.0.1:50051",), min_length=1)
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
    bases: Path | None = None
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
        for address in value:
            split_address(address)
        return value

    @field_validator("metrics")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TUNESMITH_TLS_CERTIFICATE and TUNESMITH_TLS_KEY go together; only one of them is set")
        if not self.trainer_token and self.tls_certificate is None:
            raise ValueError("TUNESMITH_TRAINER_TOKEN is empty; a join token was wanted, or a client certificate")
        return self

    def is_plaintext(self, address: str) -> bool:
        """Whether a gateway is spoken to without TLS."""
        return _is_loopback(split_address(address)[0]) if self.insecure is None else self.insecure


def split_address(address: str) -> tuple[str, int]:
    """ "127.0.0.1:50051" -> ("127.0.0.1", 50051)

    Raises:
        ValueError: It is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address; HOST:PORT was wanted, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

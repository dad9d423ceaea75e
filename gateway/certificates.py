"""The certificate that a server shows, read from files and read again when they change. Called by the server for gRPC
and for HTTP; knows neither.

Files are looked at with each handshake, so that a renewed certificate needs no restart. A pair that does not load, as
one that is just being written, is told in the log, and the one before goes on being shown.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import structlog

from gateway.config import PREFIX, ConfigError, Faults

log = structlog.get_logger(__name__)


def certificates(
    setting: str, certificate: Path | None, key: Path | None, client_authority: Path | None = None
) -> Certificates | None:
    """What those settings name; None where they name none."""
    if certificate is None or key is None:
        return None
    return Certificates(setting, certificate, key, client_authority)


class Certificates:
    """One certificate and its key, and maybe the authority that callers' certificates must be signed by.

    Args:
        setting: Which settings name the files: "TLS" or "HTTP_TLS".
        certificate: PEM, with its chain.
        key: PEM, without a passphrase.
        client_authority: PEM. None: callers need show none.

    Raises:
        ConfigError: A file cannot be read, or they do not fit together.
    """

    def __init__(self, setting: str, certificate: Path, key: Path, client_authority: Path | None = None) -> None:
        self._setting = setting
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._seen = self._look()
        self._context = self._load()
        self._configuration = self._read()

    def for_http(self) -> ssl.SSLContext:
        """For asyncio: a context whose connections each get the newest certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key, password="")

        def choose(connection: ssl.SSLObject, name: str | None, asked: ssl.SSLContext) -> None:
            self._refresh()
            connection.context = self._context

        context.sni_callback = choose
        context.set_alpn_protocols(["http/1.1"])
        return context

    def for_grpc(self) -> grpc.ServerCredentials:
        """For gRPC, which asks with each handshake."""

        def newest() -> grpc.ServerCertificateConfiguration:
            self._refresh()
            return self._configuration

        wanted = self._client_authority is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration, newest, require_client_authentication=wanted)

    def _refresh(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._context, self._configuration = self._load(), self._read()
        except (ConfigError, OSError) as exc:
            log.warning(f"The certificate before goes on being shown: {exc}", action="certificate_stays")
        else:
            log.info(f"{self._certificate} is shown from now on", action="certificate_renewed")

    def _look(self) -> tuple[object, ...]:
        """What tells one version of the files from another: a link that leads elsewhere does too."""
        found: list[object] = []
        for path in filter(None, (self._certificate, self._key, self._client_authority)):
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        named = f"{PREFIX}{self._setting}_"
        faults = Faults()
        files = {"CERTIFICATE": self._certificate, "KEY": self._key}
        for what, path in files.items():
            with faults:
                _try_to_read(f"{named}{what}={path}", path)
        if self._client_authority is not None:
            with faults:
                _try_to_read(f"{named}CLIENT_CA={self._client_authority}", self._client_authority)
        faults.tell()
        try:
            # An empty passphrase: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, ValueError) as exc:
            wanted = "wanted a PEM certificate and its own key, without a passphrase"
            raise ConfigError(f"{named}CERTIFICATE={self._certificate}, {named}KEY={self._key}: {wanted}") from exc
        if self._client_authority is not None:
            try:
                context.load_verify_locations(self._client_authority)
            except ssl.SSLError as exc:
                raise ConfigError(f"{named}CLIENT_CA={self._client_authority}: wanted PEM certificates") from exc
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _read(self) -> grpc.ServerCertificateConfiguration:
        authority = self._client_authority.read_bytes() if self._client_authority else None
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())], authority
        )


def _try_to_read(named: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{named}: {exc.strerror}") from exc

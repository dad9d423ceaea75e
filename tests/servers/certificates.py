"""A certificate authority for tests, by the command openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    Args:
        folder: For its files; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        assert shutil.which("openssl"), "scripts/tools installs openssl"
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._run("req", "-x509", *EC, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")

    def sign(self, name: str, alternatives: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """A new certificate for that common name."""
        self._run("req", *EC, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self._folder / "extensions").write_text(f"subjectAltName={alternatives}")
        signed = ("-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        self._run("x509", "-req", *signed, "-extfile", "extensions", "-out", f"{name}.pem")
        return Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self._folder)

"""A certificate authority for one machine: what an operator does with openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from manatee.config import Tls


class Authority:
    """Keeps its own key and certificate, and what it signs, in `directory`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        self._run("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}")

    def sign(self, name: str, alternatives: str | None, days: int = 30) -> Tls:
        """A peer's certificate and key, in `<name>.crt` and `.key`; `alternatives` as in `IP:127.0.0.2,DNS:x`.

        With fewer than 0 days it has expired.
        """
        key, request, signed = (self._directory / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
        extra = ["-addext", f"subjectAltName={alternatives}"] if alternatives else []
        self._run("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}", *extra)
        authority = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"]
        copied = ["-copy_extensions", "copy"] if alternatives else []
        self._run("x509", "-req", "-in", request, "-out", signed, *authority, *copied, "-days", days)
        return Tls(ca_file=self.certificate, cert_file=signed, key_file=key)

    def _run(self, *words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=30)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

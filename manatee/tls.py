"""Encryption between the peers' backup servers: what a server shows, and what who asks it insists on.

All peers share an authority (`tls.ca_file`), and each has a certificate by it. Peers reach each other by literal
addresses, so the chain is always verified, and the address when the certificate names any: a certificate for names only
(or a shard-wide one) is worth its chain, one that names addresses is good for these alone. That is looked at within the
handshake, before the token is shown.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manatee.config import BadConfiguration, Tls
from manatee.log import Logger


class BadCertificate(BadConfiguration):
    """A file that `tls` names cannot be used; the message says which and why."""


def client_context(tls: Tls) -> ssl.SSLContext:
    """For asking another peer's backup server. Made anew for each session, so that it knows a new authority.

    Raises BadCertificate.
    """
    _readable("ca_file", tls.ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it would refuse a certificate that names no address
    try:
        context.load_verify_locations(tls.ca_file)
    except ssl.SSLError as error:
        raise BadCertificate(f"tls.ca_file: {tls.ca_file} holds no certificate: {_reason(error)}") from error
    context.sslobject_class = _OfItsAddress
    return context


def server_context(tls: Tls, ip: str, log: Logger) -> ssl.SSLContext:
    """What the backup server at `ip` shows. New connections get what is in the files then.

    Files that cannot be used are not taken up: those before them stay in use, and the log says why. Raises
    BadCertificate if the files cannot be used now, or who follows the same settings would not trust them.
    """
    trusted(tls, ip)
    current, seen = _own_context(tls), _state_of(tls)
    entrance = _own_context(tls)

    def present(connection: ssl.SSLObject, _: str, __: ssl.SSLContext) -> None:
        nonlocal current, seen
        now = _state_of(tls)
        if now != seen:
            seen = now
            try:
                trusted(tls, ip)
                current = _own_context(tls)
            except BadCertificate as error:
                log.error("the new certificate is not taken up, the one before it stays", error=str(error))
            else:
                log.info("new certificate", cert_file=str(tls.cert_file))
        connection.context = current

    entrance.sni_callback = present  # called in each handshake, with a name or without
    return entrance


def trusted(tls: Tls, ip: str) -> None:
    """Raises BadCertificate unless a peer with the same authority accepts our certificate as that of `ip`."""
    into_server, into_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = _own_context(tls).wrap_bio(into_server, into_client, server_side=True)
    client = client_context(tls).wrap_bio(into_client, into_server, server_hostname=ip)
    pending: list[Callable[[], None]] = [client.do_handshake, server.do_handshake]
    try:
        while pending:
            step = pending.pop(0)
            try:
                step()
            except ssl.SSLWantReadError:
                pending.append(step)
    except ssl.SSLError as error:
        raise BadCertificate(
            f"tls.cert_file: with {tls.cert_file} no peer would trust this one: {_reason(error)}"
        ) from error


class _OfItsAddress(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        certificate = self.getpeercert() or {}
        alternatives: Any = certificate.get("subjectAltName", ())
        named = [value for kind, value in alternatives if kind == "IP Address"]
        asked = self.server_hostname
        if named and asked and ipaddress.ip_address(asked) not in map(ipaddress.ip_address, named):
            raise ssl.SSLCertVerificationError(f"its certificate is for {', '.join(named)}, not for {asked}")


def _own_context(tls: Tls) -> ssl.SSLContext:
    _readable("cert_file", tls.cert_file)
    _readable("key_file", tls.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: "")  # never asks on a terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(f"tls.key_file: {tls.key_file} is not the key of {tls.cert_file}") from error
        raise BadCertificate(
            f"tls.cert_file and tls.key_file: {tls.cert_file} and {tls.key_file} are not a certificate and its key, "
            f"in PEM and without a passphrase: {_reason(error)}"
        ) from error
    return context


def _readable(key: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"tls.{key}: {path} cannot be read: {error.strerror}") from error


def _state_of(tls: Tls) -> tuple[object, ...]:
    """Differs when a file does."""
    state: list[object] = []
    for path in (tls.ca_file, tls.cert_file, tls.key_file):
        try:
            stat = path.stat()
            state.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError as error:
            state.append(error.errno)
    return tuple(state)


def _reason(error: ssl.SSLError) -> str:
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)  # neither, if it is our own
    return str(reason).lower().replace("_", " ") if reason else str(error)

"""How one peer's processes reach another peer's PostgreSQL: as whom, with which secret, encrypted or not.

Secrets are in files alone. The sitter keeps them, for PostgreSQL's user to read, in `sitter.state_dir` (`PASSFILE`,
`TLS_FILES`); a connection names the files. So nothing secret is in a connection string, and therefore not in
`primary_conninfo`, a process title, an error message or a log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manatee.cluster import Peer
from manatee.config import BadConfiguration, Settings

SUPERUSER = "postgres"

PASSFILE = "replication.pgpass"
"""Holds the replication role's password as libpq reads it (documentation, "The Password File")."""

TLS_FILES = {"ca_file": "tls-ca.crt", "cert_file": "tls-peer.crt", "key_file": "tls-peer.key"}
"""The copies of the files that `[tls]` names."""

LONGEST_PASSWORD = 512


def role(settings: Settings) -> str:
    """Whom the peers connect to each other as."""
    return settings.postgres.replication_user or SUPERUSER


def parameters(settings: Settings, peer: Peer) -> dict[str, Any]:
    """Where and as whom: libpq's parameters for the PostgreSQL of `peer`, but for the database and the time limits.

    The connection may replicate, look at everything (`pg_monitor`) and be the source of pg_rewind, in the database
    `postgres`.
    """
    found = {"host": peer.ip, "port": str(peer.postgres_port), "user": role(settings)}
    if settings.postgres.replication_user is not None:
        found["passfile"] = str(settings.sitter.state_dir / PASSFILE)
    if settings.tls is None:
        return {**found, "sslmode": "prefer"}
    ours = {name: str(settings.sitter.state_dir / file) for name, file in TLS_FILES.items()}
    files = {"sslrootcert": ours["ca_file"], "sslcert": ours["cert_file"], "sslkey": ours["key_file"]}
    return {**found, "sslmode": "verify-ca", **files}


def password(settings: Settings) -> str | None:
    """The replication role's password, None if there is no such role; raises BadConfiguration.

    Printable ASCII alone: so that libpq, PostgreSQL and a password file take it for the same.
    """
    path = settings.postgres.replication_password_file
    if path is None:
        return None
    mistake = f"postgres.replication_password_file = '{path}': "
    try:
        mode = path.stat().st_mode
        written = path.read_bytes()
    except OSError as error:
        raise BadConfiguration(f"{mistake}cannot be read: {error.strerror}") from error
    if mode & 0o007:
        raise BadConfiguration(
            f"{mistake}anybody on this machine may use it: expected no rights for others (chmod 600)"
        )
    found = written.removesuffix(b"\n").removesuffix(b"\r")
    if not 0 < len(found) <= LONGEST_PASSWORD or not all(0x20 < byte < 0x7F for byte in found):
        raise BadConfiguration(
            f"{mistake}expected one line of 1 to {LONGEST_PASSWORD} printable ASCII characters without spaces"
        )
    return found.decode("ascii")


def passfile_line(user: str, secret: str) -> str:
    """The line of a password file for this role at any server."""
    return f"*:*:*:{_escaped(user)}:{_escaped(secret)}\n"


def file(settings: Settings, name: str) -> Path:
    """Where a rendered file stands."""
    return settings.sitter.state_dir / name


def _escaped(field: str) -> str:
    return field.replace("\\", "\\\\").replace(":", "\\:")

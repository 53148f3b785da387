"""Where a PostgreSQL server is reached: in a peer's `pgUrl`, and as a URL of several hosts that libpq understands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit


@dataclass(frozen=True)
class Address:
    """Where a PostgreSQL server is reached, and as whom."""

    host: str
    port: int = 5432
    user: str = "postgres"
    dbname: str = "postgres"
    password: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """As psycopg's connection parameters."""
        found = {"host": self.host, "port": self.port, "user": self.user, "dbname": self.dbname}
        return found if self.password is None else {**found, "password": self.password}

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({self.user}@{self}/{self.dbname})"


def postgres_address(pg_url: str) -> Address:
    """The address in a peer's `pgUrl`, e.g. `tcp://postgres@10.65.68.14:5432/postgres`; raises ValueError."""
    parts = urlsplit(pg_url)
    if parts.scheme not in ("tcp", "postgres", "postgresql") or not parts.hostname:
        raise ValueError("not a PostgreSQL address: expected tcp://USER@HOST:PORT/DATABASE")
    return Address(
        host=parts.hostname,
        port=parts.port or 5432,
        user=unquote(parts.username or "postgres"),
        dbname=unquote(parts.path.strip("/")) or "postgres",
        password=unquote(parts.password) if parts.password else None,
    )


def libpq_url(
    addresses: Iterable[Address],
    *,
    user: str | None = None,
    dbname: str | None = None,
    target_session_attrs: str = "read-write",
) -> str:
    """A multi-host connection URL for libpq (PostgreSQL documentation, 34.1.1.3), without a password.

    libpq tries the hosts in turn until one fits `target_session_attrs`: `read-write`, `primary`, `standby`,
    `prefer-standby`, `read-only` or `any`.

    >>> libpq_url([Address("10.0.0.1"), Address("10.0.0.2", 5433)], user="moray", dbname="moray")
    'postgresql://moray@10.0.0.1:5432,10.0.0.2:5433/moray?target_session_attrs=read-write'
    """
    hosts = list(addresses)
    if not hosts:
        raise ValueError("no host was given")
    who, where = user or hosts[0].user, dbname or hosts[0].dbname
    places = ",".join(str(host) for host in hosts)
    attributes = {"target_session_attrs": target_session_attrs}
    return f"postgresql://{quote(who, safe='')}@{places}/{quote(where, safe='')}?{urlencode(attributes)}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

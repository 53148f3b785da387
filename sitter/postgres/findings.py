"""A look at what PostgreSQL really goes by: what wins over the sitter's settings, what waits for a restart.

Three things can say otherwise: a file (ALTER SYSTEM's, a broken one of the operator's), a role or a database (ALTER
ROLE ... SET), and the time since the last restart. `look` finds all of it with one connection, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from manatee.config import Settings
from sitter.postgres import configuration
from sitter.postgres.configuration import Wrong

_PENDING = "select name from pg_settings where pending_restart order by name"

_FILES = """
select coalesce(sourcefile, '?') || ':' || coalesce(sourceline, 0), error from pg_file_settings
where error is not null and error <> 'setting could not be applied' order by seqno limit 10
"""

_OVERRIDES = """
select (select rolname from pg_roles where oid = setrole), (select datname from pg_database where oid = setdatabase),
  word
from pg_db_role_setting, unnest(setconfig) word order by 1, 2, 3
"""

_ENCRYPTED = """
select application_name, coalesce(ssl, false) from pg_stat_replication left join pg_stat_ssl using (pid)
"""

KEEP_THE_PROMISE = {"synchronous_commit": frozenset({"on", "remote_apply", "true", "yes", "1"})}
"""What a role or a database may say of a setting of the sitter's."""

COURTESY = frozenset({"default_transaction_read_only"})
"""What they may say as they like: no promise rests on it."""


@dataclass(frozen=True)
class Override:
    """ALTER ROLE or ALTER DATABASE, for a setting that is the sitter's."""

    role: str | None
    """None: whatever the role."""
    database: str | None
    name: str
    value: str

    @property
    def reset(self) -> sql.Composed:
        """The statement that takes it away."""
        setting = sql.Identifier(self.name)
        if self.role is None and self.database is not None:
            return sql.SQL("alter database {} reset {}").format(sql.Identifier(self.database), setting)
        who = sql.SQL("all") if self.role is None else sql.Identifier(self.role)
        where = sql.SQL(" in database {}").format(sql.Identifier(self.database)) if self.database else sql.SQL("")
        return sql.SQL("alter role {}{} reset {}").format(who, where, setting)

    def __str__(self) -> str:
        places = [f"role {self.role}" if self.role else "", f"database {self.database}" if self.database else ""]
        return f"{self.name} = {self.value} for {' in '.join(filter(None, places)) or 'all roles'}"


@dataclass(frozen=True)
class Findings:
    """What one look has found."""

    wrong: tuple[Wrong, ...] = ()
    """Settings that are not in force as they were rendered, and that no restart is awaited for."""
    pending_restart: tuple[str, ...] = ()
    """Settings, the operator's too, that wait for a restart of PostgreSQL."""
    broken: tuple[str, ...] = ()
    """What PostgreSQL cannot read in its configuration files: as long as there is something, it takes no change."""
    overrides: tuple[Override, ...] = ()
    encrypted: Mapping[str, bool] = field(default_factory=dict)
    """Whether each replication connection from here is, by application name."""


async def look(connection: psycopg.AsyncConnection[Any], settings: Settings, expected: Mapping[str, str]) -> Findings:
    """One look over a new connection, as superuser. Raises psycopg.Error."""
    await connection.execute("set lc_messages = 'C'")
    pending = tuple(name for (name,) in await _rows(connection, _PENDING))
    wrong = await configuration.read_back(connection, settings, expected)
    ours = configuration.owned(settings) - COURTESY
    return Findings(
        wrong=tuple(one for one in wrong if one.name not in pending),
        pending_restart=pending,
        broken=tuple(f"{place}: {error}" for place, error in await _rows(connection, _FILES)),
        overrides=tuple(one for one in await _overrides(connection) if one.name in ours and _defeats(one)),
        encrypted=dict(await _rows(connection, _ENCRYPTED)),
    )


async def reset(connection: psycopg.AsyncConnection[Any], override: Override) -> None:
    """Take it away, on a primary, over a superuser's connection in autocommit mode. Raises psycopg.Error."""
    async with connection.transaction():
        await connection.execute("set transaction read write")
        await connection.execute("set local synchronous_commit = local")
        await connection.execute(override.reset)


def _defeats(override: Override) -> bool:
    return override.value.lower() not in KEEP_THE_PROMISE.get(override.name, frozenset())


async def _overrides(connection: psycopg.AsyncConnection[Any]) -> list[Override]:
    found = []
    for role, database, word in await _rows(connection, _OVERRIDES):
        name, _, value = word.partition("=")
        found.append(Override(role, database, name.lower(), value))
    return found


async def _rows(connection: psycopg.AsyncConnection[Any], query: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()

"""What is asked of the local server: over its Unix socket, as superuser, on a fresh connection, with a deadline.

A fresh connection each time, because one that is open still answers when the postmaster hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import dict_row

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import leftovers
from sitter.postgres.errors import Hung, Unreachable

APPLICATION = "manatee-sitter"

Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]


class Condition(StrEnum):
    """What a fresh connection finds. Only `HUNG` and `REFUSED` can mean that the server is dead."""

    UP = "up"
    STARTING = "starting"
    """A postmaster answers and lets nobody in yet, or no more: it starts, recovers or stops."""
    REJECTED = "rejected"
    """A postmaster answers and turns us away for another reason: pg_hba.conf, too many connections."""
    REFUSED = "refused"
    """Nobody listens."""
    HUNG = "hung"
    """No answer within the deadline."""


@dataclass(frozen=True)
class Health:
    """The outcome of one check."""

    condition: Condition
    reason: str = ""
    seconds: float = 0.0
    """What it took."""

    @property
    def up(self) -> bool:
        return self.condition is Condition.UP


@dataclass(frozen=True)
class Downstream:
    """A walsender, as our own pg_stat_replication shows it."""

    pid: int
    application_name: str
    client_addr: str | None
    state: str
    """`streaming` once it has caught up; `startup`, `catchup`, `backup` (a base backup), `stopping`."""
    sync_state: str
    """`sync`, `async`, `potential`, `quorum`: the view of the asking backend, not of the walsender."""
    sent: Lsn | None
    write: Lsn | None
    flush: Lsn | None
    replay: Lsn | None
    replay_lag: float | None
    """Seconds; None when it is idle and has caught up."""

    @property
    def ahead(self) -> bool:
        """It has replayed what was never sent to it. If we are a primary, we have lost that.

        A receiver asks for its segment from the beginning, and reports what it has replayed as flushed: it is served
        although it has more. Until it has caught up, `sent` is somewhere in that segment; what it has flushed is of the
        timeline before for a moment, when it changes over to a new one. A standby that has just started may itself have
        replayed less than who follows it.
        """
        if self.state != "streaming" or self.sent is None or self.replay is None:
            return False
        return self.replay > self.sent


@dataclass(frozen=True)
class Receiver:
    """The WAL receiver of a standby, as pg_stat_wal_receiver shows it."""

    pid: int
    status: str
    """`streaming`, or `starting`, `waiting`, `restarting`, `stopping`."""
    sender_host: str | None
    sender_port: int | None
    timeline: int | None
    conninfo: str
    latest_end: Lsn | None
    """The upstream's end of WAL by its last message."""
    silent: float | None
    """Seconds since its last message."""


@dataclass(frozen=True)
class Facts:
    """One look at the local server; all of it comes from one query."""

    in_recovery: bool
    timeline: int
    """Of a primary: its own. Of a standby: the newest that its receiver or its control file tells of."""
    flush: Lsn
    """Of a primary: the end of its flushed WAL. Of a standby: of what it has received and flushed, or replayed."""
    replay: Lsn | None
    last_replayed: datetime | None
    """When the last transaction that was replayed had been committed."""
    replay_paused: bool
    read_only: bool
    """`default_transaction_read_only`, as new connections find it."""
    standby_names: str
    """`synchronous_standby_names`, as new connections find it."""
    started: datetime
    """When the postmaster started."""
    receiver: Receiver | None
    downstreams: tuple[Downstream, ...]
    upstream: str = ""
    """`primary_conninfo`."""
    synchronous_commit: str = "on"
    """As new connections of ours find it."""
    redo: Lsn | None = None
    """Where recovery would begin, by the control file: it needs the WAL from there on."""
    gate_overridden: bool = False
    """ALTER ROLE or ALTER DATABASE sets `default_transaction_read_only` for us; what the server has is not seen."""

    def downstream(self, application_name: str) -> Downstream | None:
        """The walsender of the standby with this name; the furthest, if an old connection has not gone yet."""
        named = [row for row in self.downstreams if row.application_name == application_name]
        return max(named, key=lambda row: (row.state == "streaming", row.flush or Lsn(0)), default=None)


_FACTS = """
select pg_is_in_recovery() as in_recovery,
  case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_flush_lsn() end::text as flush,
  pg_last_wal_replay_lsn()::text as replay,
  pg_last_xact_replay_timestamp() as last_replayed,
  case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end as replay_paused,
  case when not pg_is_in_recovery() then pg_walfile_name(pg_current_wal_flush_lsn()) end as walfile,
  (select greatest(c.timeline_id, r.min_recovery_end_timeline) from pg_control_checkpoint() c, pg_control_recovery() r)
    as control_timeline,
  (select redo_lsn::text from pg_control_checkpoint()) as redo,
  current_setting('default_transaction_read_only')::bool as read_only,
  current_setting('synchronous_standby_names') as standby_names,
  current_setting('primary_conninfo') as upstream,
  current_setting('synchronous_commit') as synchronous_commit,
  exists (select from pg_db_role_setting, unnest(setconfig) word
    where setrole in (0, current_user::text::regrole) and word like 'default_transaction_read_only=%')
    as gate_overridden,
  pg_postmaster_start_time() as started,
  (select json_build_object('pid', pid, 'status', status, 'sender_host', sender_host, 'sender_port', sender_port,
      'timeline', received_tli, 'conninfo', coalesce(conninfo, ''), 'latest_end', latest_end_lsn::text,
      'silent', extract(epoch from clock_timestamp() - last_msg_receipt_time)::float8)
    from pg_stat_wal_receiver) as receiver,
  (select json_agg(json_build_object('pid', pid, 'application_name', application_name,
      'client_addr', host(client_addr), 'state', state, 'sync_state', sync_state, 'sent', sent_lsn::text,
      'write', write_lsn::text, 'flush', flush_lsn::text, 'replay', replay_lsn::text,
      'replay_lag', extract(epoch from replay_lag)::float8) order by pid)
    from pg_stat_replication) as downstreams
"""


@contextlib.asynccontextmanager
async def connect(
    settings: Settings, *, timeout: float | None = None, application_name: str = APPLICATION
) -> AsyncIterator[Connection]:
    """A new superuser connection to the local server, autocommit, closed at the end.

    All that is done over it, connecting included, has `timeout` seconds (`postgres.query_timeout`). Raises Unreachable;
    Hung if it is the deadline that passed. Errors of the queries themselves are psycopg's, for the caller.
    """
    limit = timeout if timeout is not None else settings.postgres.query_timeout
    deadline = asyncio.timeout(limit)
    try:
        async with deadline:
            connection = await open_connection(settings, timeout=limit, application_name=application_name)
            try:
                yield connection
            finally:
                await connection.close()
    except TimeoutError:
        if not deadline.expired():
            raise
        raise Hung(f"PostgreSQL did not answer within {limit:g} s") from None
    except psycopg.OperationalError as error:
        raise Unreachable(f"the connection to PostgreSQL broke: {_first_line(error)}") from error


async def health(settings: Settings, *, timeout: float | None = None) -> Health:
    """Connect anew and have a trivial query answered, all within `timeout` seconds (`postgres.health_timeout`).

    Never raises for a server that is unwell.
    """
    limit = timeout if timeout is not None else settings.postgres.health_timeout
    begun = time.monotonic()
    try:
        async with connect(settings, timeout=limit) as connection:
            await connection.execute("select 1")
    except Hung as error:
        return Health(Condition.HUNG, str(error), time.monotonic() - begun)
    except (psycopg.Error, Unreachable) as error:
        condition = await _condition(settings, timeout=limit)
        return Health(condition, str(error), time.monotonic() - begun)
    return Health(Condition.UP, "", time.monotonic() - begun)


async def facts(settings: Settings, *, timeout: float | None = None) -> Facts:
    """Connect anew and look at everything at once, within `timeout` seconds (`postgres.health_timeout`).

    Raises Hung if the deadline passes, Unreachable for everything else that keeps it from answering.
    """
    limit = timeout if timeout is not None else settings.postgres.health_timeout
    try:
        async with connect(settings, timeout=limit) as connection:
            return await look(connection)
    except psycopg.Error as error:
        raise Unreachable(f"PostgreSQL did not answer: {_first_line(error)}") from error


async def look(connection: Connection) -> Facts:
    """Everything at once, over a connection that is there already. Raises psycopg.Error."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_FACTS)
        row = await cursor.fetchone()
    assert row is not None
    receiver = row["receiver"]
    received, replay = _lsn(row["flush"]), _lsn(row["replay"])
    timelines = [row["control_timeline"], *([receiver["timeline"]] if receiver else [])]
    return Facts(
        in_recovery=row["in_recovery"],
        timeline=int(row["walfile"][:8], 16) if row["walfile"] else max(filter(None, timelines)),
        # A receiver that has just started counts from the beginning of its segment, below what has been replayed.
        flush=max(received or Lsn(0), replay or Lsn(0)) if row["in_recovery"] else received or Lsn(0),
        replay=replay,
        last_replayed=row["last_replayed"],
        replay_paused=row["replay_paused"],
        read_only=row["read_only"],
        standby_names=row["standby_names"],
        upstream=row["upstream"],
        synchronous_commit=row["synchronous_commit"],
        redo=_lsn(row["redo"]),
        gate_overridden=row["gate_overridden"],
        started=row["started"],
        receiver=Receiver(**{**receiver, "latest_end": _lsn(receiver["latest_end"])}) if receiver else None,
        downstreams=tuple(_downstream(item) for item in row["downstreams"] or ()),
    )


def _downstream(row: dict[str, Any]) -> Downstream:
    return Downstream(**{**row, **{name: _lsn(row[name]) for name in ("sent", "write", "flush", "replay")}})


def _lsn(written: str | None) -> Lsn | None:
    return None if written is None else Lsn.parse(written)


async def open_connection(settings: Settings, *, timeout: float, application_name: str = APPLICATION) -> Connection:
    """What `connect` yields, for the caller to close and to keep the deadlines of. Raises Hung, Unreachable."""
    try:
        return await psycopg.AsyncConnection.connect(
            host=str(settings.postgres.socket_dir),
            port=settings.peer.postgres_port,
            user="postgres",
            dbname="postgres",
            application_name=application_name,
            connect_timeout=max(2, math.ceil(timeout)),
            options="-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"
            " -c search_path=pg_catalog",
            autocommit=True,
        )
    except psycopg.errors.ConnectionTimeout:
        raise Hung(f"no connection to PostgreSQL within {timeout:g} s") from None
    except psycopg.OperationalError as error:
        raise Unreachable(f"no connection to PostgreSQL: {_first_line(error)}") from error


async def _condition(settings: Settings, *, timeout: float) -> Condition:
    """Why we were turned away; not by the message, which is in the operator's language."""
    socket = settings.postgres.socket_dir / f".s.PGSQL.{settings.peer.postgres_port}"
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_unix_connection(socket)
            writer.close()
    except (TimeoutError, BlockingIOError):
        return Condition.HUNG
    except OSError:
        return Condition.REFUSED
    lock = leftovers.lock_file(settings.storage.data_dir)
    return Condition.REJECTED if lock is not None and lock.status == "ready" else Condition.STARTING


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Seals: the certainty that nothing more is acknowledged except through this peer, and the position that follows.

A commit is acknowledged when the primary hears from its sync that the commit's record is flushed. So there are two ends
to hold: the sync sees to it that it receives nothing more, the primary that it hears nothing more. Each is certain of
its own end alone, whatever the other does (design, section 5).

*The standby.* The startup process asks for a WAL receiver whenever it has replayed what there is, by the
`primary_conninfo` that it read last. When it waits in `RecoveryRetrieveRetryInterval` it has just put an end to any
receiver, and it reads a changed configuration before it asks for the next. So, after the postmaster has passed the
reload on (a new connection sees the new value): no receiver, and the startup process in that wait, and nothing complete
on disk behind what is replayed, is a seal; and the position is the replayed one.

*The primary.* A walsender releases commits by the settings that it read last. So, after the postmaster has passed the
reload on: a commit is seen waiting (which shows that commits do wait, should they not have before), and every walsender
that could have been the sync's is seen gone. A new one begins with the new settings. What was acknowledged before lies
below our flush position.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import psycopg
from psycopg.pq import ExecStatus

from manatee.cluster import Peer, application_name
from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import configuration, controldata, queries, wal_end
from sitter.postgres.configuration import ALONE, NOBODY
from sitter.postgres.errors import PostgresError, RestartNeeded, SealFailed
from sitter.postgres.queries import Connection
from sitter.postgres.server import Server

LOOK = 0.002
"""Seconds between two looks."""

BLOCKED = 0.02
"""Seconds without progress after which queries that replay waits for are ended."""

STUCK = 0.5
"""The same, when replay does not say what it waits for."""

PROBE = "manatee-seal"
"""The application name of the probe's connection."""

_REPLAY = """
select pg_last_wal_replay_lsn()::text, pg_is_wal_replay_paused(),
  (select concat_ws(' ', wait_event_type, wait_event) from pg_stat_activity where backend_type = 'startup'),
  array(select pid from pg_stat_wal_receiver where pid is not null
        union select pid from pg_stat_activity where backend_type = 'walreceiver')
"""
_CANCEL = """
select case when state = 'active' and %s then pg_cancel_backend(pid) else pg_terminate_backend(pid) end
from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()
  and (xact_start is not null or backend_xmin is not null)
"""
_WALSENDERS = """
select pid from pg_stat_replication where application_name = any(%(names)s) or sync_priority > 0
union select pid from pg_stat_activity where backend_type = 'walsender' and application_name = any(%(names)s)
"""

_CHECKPOINT = """
select timeline_id, checkpoint_lsn::text, redo_lsn::text,
  (select setting::bigint from pg_settings where name = 'wal_segment_size')
from pg_control_checkpoint()
"""

_RAN_OUT = "RecoveryRetrieveRetryInterval"


@dataclass
class _Step:
    """How far a seal has got."""

    name: str = "configuration"


@dataclass(frozen=True)
class _Checkpoint:
    """What the control file says, without the program that reads it."""

    timeline: int
    checkpoint: Lsn
    redo: Lsn
    wal_segment_size: int


@dataclass(frozen=True)
class _Replay:
    position: Lsn
    paused: bool
    waits_for: str
    """Of the startup process, in PostgreSQL's words; empty while it works."""
    receivers: frozenset[int]

    @property
    def ran_out(self) -> bool:
        return self.waits_for.endswith(_RAN_OUT) and not self.receivers and not self.paused

    @property
    def blocked(self) -> bool:
        return self.waits_for.startswith(("Lock", "BufferPin")) or "RecoveryConflict" in self.waits_for


async def seal_standby(settings: Settings, server: Server) -> Lsn:
    """Have the local standby receive nothing more, ever, and replay all that it has; the end of that.

    `server` stays configured to be sealed, so that a restart keeps the seal. Queries that hold replay up are ended. The
    server must let us in. Raises SealFailed, which says at which step, when nothing has moved for
    `postgres.query_timeout` seconds; RestartNeeded if replay cannot go on before the server is started anew.
    """
    async with _steps() as step:
        sealed = replace(server.replication, commits_wait_for=NOBODY, upstream=None, sealed=True)
        async with server.configured(sealed, timeout=settings.postgres.start_timeout) as connection:
            step.name = "replay"
            return await _replay_all(settings, connection)


async def seal_primary(settings: Settings, server: Server, sync: Peer | None) -> Lsn:
    """Have commits on the local primary wait for nobody's confirmation in particular, for good; its flush position.

    `server` stays configured with the name that nobody bears. The walsenders of `sync`, and of whoever commits waited
    for, are ended. Raises SealFailed, which says at which step, after `postgres.query_timeout` seconds; the name stays.
    """
    names = {server.replication.commits_wait_for, *([application_name(sync)] if sync else [])} - {NOBODY, ALONE}
    nobody = replace(server.replication, commits_wait_for=NOBODY)
    async with _steps() as step, server.configured(nobody) as connection:
        step.name = "probe"
        async with _waiting_commit(settings, connection):
            step.name = "walsender"
            await _end_walsenders(connection, sorted(names))
        step.name = "position"
        row = await (await connection.execute("select pg_current_wal_flush_lsn()::text")).fetchone()
        assert row is not None
        return Lsn.parse(row[0])


@contextlib.asynccontextmanager
async def _steps() -> AsyncIterator[_Step]:
    """Whatever goes wrong is a failed seal, and says where."""
    step = _Step()
    try:
        yield step
    except SealFailed:
        raise
    except (PostgresError, psycopg.Error, OSError) as error:
        raise SealFailed(step.name, str(error).strip()) from error


# --- The standby ----------------------------------------------------------------------------------------------------


async def _replay_all(settings: Settings, connection: Connection) -> Lsn:
    """Wait until replay has come to the end of all that is on disk and nothing can be added; what it takes is done."""
    progress = time.monotonic()
    before: _Replay | None = None
    while True:
        now = await _look(connection)
        if before is None or now.position > before.position:
            progress = time.monotonic()
        idle = time.monotonic() - progress
        if idle > settings.postgres.query_timeout:
            waits_for = now.waits_for or ("a WAL receiver to end" if now.receivers else "nothing that it says")
            # A receiver that does not end by itself, stopped or waiting for its disk, ends with the server.
            failure = RestartNeeded if now.receivers else SealFailed
            raise failure("replay", f"stands still at {now.position}, waiting for {waits_for}")
        if now.ran_out and await _nothing_left(settings, connection, now):
            return now.position
        for pid in now.receivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if now.paused:
            await _resume(settings, connection)
        elif idle > (BLOCKED if now.blocked else STUCK) and not now.ran_out:
            await connection.execute(_CANCEL, [idle < 5 * BLOCKED])
            await asyncio.sleep(BLOCKED)
        before = now
        await asyncio.sleep(LOOK)


async def _look(connection: Connection) -> _Replay:
    row = await (await connection.execute(_REPLAY)).fetchone()
    assert row is not None
    if row[0] is None:
        raise SealFailed("replay", "this server is no standby")
    return _Replay(Lsn.parse(row[0]), row[1], row[2] or "", frozenset(row[3]))


async def _nothing_left(settings: Settings, connection: Connection, seen: _Replay) -> bool:
    """Whether the log on disk ends where replay has, and nothing has moved while we looked."""
    row = await (await connection.execute(_CHECKPOINT)).fetchone()
    assert row is not None
    checkpoint = _Checkpoint(row[0], Lsn.parse(row[1]), Lsn.parse(row[2]), row[3])
    version = connection.info.server_version // 10000
    end = await wal_end.find(settings, checkpoint, version=version, known=seen.position)
    return end.lsn == seen.position and await _look(connection) == seen


async def _resume(settings: Settings, connection: Connection) -> None:
    """Go on with replay, unless it is paused because this server's settings are smaller than the primary's were."""
    control = await controldata.read(settings)
    if smaller := await configuration.smaller(settings, control.floors):
        raise RestartNeeded("replay", smaller)
    await connection.execute("select pg_wal_replay_resume()")


# --- The primary ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _waiting_commit(settings: Settings, connection: Connection) -> AsyncIterator[None]:
    """Within, a commit on a new connection waits for its confirmation. It is never cancelled: we just hang up.

    Probes of earlier seals that wait still are ended; nobody is told anything of them.
    """
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [PROBE]
    )
    async with queries.connect(settings, application_name=PROBE) as probe:
        try:
            while not await _commit_waits(connection, probe):
                pass
            yield
        finally:
            # Closing it as usual would do as well; but nothing must ever send a cancel request for it.
            probe.pgconn.finish()


async def _commit_waits(connection: Connection, probe: Connection) -> bool:
    """Begin a commit on `probe`; True once it is seen waiting, False if it went through."""
    commit = b"begin read write; select pg_logical_emit_message(true, 'manatee', 'seal'); commit"
    probe.pgconn.send_query(commit)
    while probe.pgconn.flush():
        await asyncio.sleep(LOOK)
    while True:
        cursor = await connection.execute(
            "select 1 from pg_stat_activity where pid = %s and wait_event = 'SyncRep'", [probe.info.backend_pid]
        )
        if await cursor.fetchone():
            return True
        probe.pgconn.consume_input()
        if not probe.pgconn.is_busy():
            while result := probe.pgconn.get_result():
                if result.status == ExecStatus.FATAL_ERROR:
                    raise SealFailed("probe", result.error_message.decode(errors="replace").strip())
            return False
        await asyncio.sleep(LOOK)


async def _end_walsenders(connection: Connection, names: list[str]) -> None:
    """End every walsender that may have been the sync's, and see each of them gone."""
    pids = [row[0] for row in await (await connection.execute(_WALSENDERS, {"names": names})).fetchall()]
    await connection.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [pids])
    while True:
        cursor = await connection.execute(
            "select pid from pg_stat_activity where pid = any(%(pids)s)"
            " union select pid from pg_stat_replication where pid = any(%(pids)s)",
            {"pids": pids},
        )
        if not await cursor.fetchall():
            return
        await asyncio.sleep(LOOK)

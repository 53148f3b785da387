"""Data that have diverged, turned back to where they parted from a primary's and forward to what that has: pg_rewind.

pg_rewind goes by timeline numbers and histories, and two promotions can give the same number to two timelines with the
same history. It then sees nothing to do, or turns back not far enough, and the data come out wrong without a word. So
it is asked first where it would turn back to, and the logs up to there are compared, byte for byte; only then it is let
loose. It says itself what it cannot do (no checksums, a log that is gone): then nothing has been changed.

From its first to its last step the data are neither what they were nor what they should be, and they look as if they
could be started. A mark outside of them says so, from before the first step until all is durable: whoever finds the
mark, and no rewind under way, has data to throw away. A second attempt on them would not see all that is to be undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from manatee import link, wal
from manatee.cluster import Peer, written_time
from manatee.config import Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from manatee.peerserver import session
from manatee.storage import child
from manatee.tls import BadCertificate
from sitter.postgres import compare, configuration, controldata, leftovers, versions
from sitter.postgres.account import Account, remove_durably, sync_directory, write_durably
from sitter.postgres.configuration import NOBODY, Replication
from sitter.postgres.errors import CompareFailed, PostgresError, ToolFailed
from sitter.postgres.tools import WORKING_DIRECTORY, credentials, environment

OURS = ("pg_hba.conf", "pg_ident.conf", "postgresql.conf", "postgresql.auto.conf")
"""Files of the data directory that are this peer's own; pg_rewind copies the source's over them."""

RECOVERY = 3600.0
"""Seconds that the recovery of data which were not stopped cleanly may take."""

CHECKPOINT = 600.0
"""Seconds that a checkpoint of the source may take."""

LOOK = 0.2
"""Seconds between two looks at whether the source has flushed what the data need of its log."""

_PARTED = re.compile(r"servers diverged at WAL location ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)")
_CHECKPOINT = re.compile(r"rewinding from last common checkpoint at ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)")
_COPIED = re.compile(r"(\d+)/(\d+) kB \(\d+%\) copied")


class Unrewindable(PostgresError):
    """These data cannot be rewound, and have not been changed; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What pg_rewind would do."""

    parted: Lsn
    """Where it takes the histories to part."""
    checkpoint: Lsn
    """The last checkpoint before, from which on it undoes what was done here."""


def torn(settings: Settings) -> bool:
    """A rewind of this peer's data is under way, or was cut short."""
    return settings.sitter.rewind_mark.exists()


def forget(settings: Settings) -> None:
    """The data that the mark speaks of have been replaced. Raises OSError."""
    remove_durably(settings.sitter.rewind_mark)


async def rewind(
    settings: Settings, source: Peer, log: Logger, on_progress: Callable[[int, int], None] | None = None
) -> Plan:
    """Rewind the data in `settings.storage.data_dir` to those of `source`, a primary that runs.

    PostgreSQL must not run here. Afterwards the data are a standby's, with all of the log that they need to become
    consistent. `on_progress` is told bytes done and in all. Raises Unrewindable if it cannot be, PostgresError or
    OSError if something failed; if `torn` then, the data are lost.
    """
    if torn(settings):
        raise Unrewindable("a rewind of these data was cut short")
    await _recover(settings)
    await _checkpointed(settings, source)
    plan = await _plan(settings, source)
    theirs = await _confirm(settings, source, plan)
    log.info("rewinding", source=source.label, parted=str(plan.parted), checkpoint=str(plan.checkpoint))
    kept = await asyncio.to_thread(_own_files, settings.storage.data_dir)
    mark = json.dumps({"source": source.id, "begun": written_time(time.time()), "parted": str(plan.parted)})
    write_durably(settings.sitter.rewind_mark, mark, None)
    await _pg_rewind(settings, source, on_progress=on_progress)
    await asyncio.to_thread(_put_back, settings, kept)
    await _fetch_log(settings, source, since=theirs.end, timeline=theirs.timeline)
    configuration.set_standby_signal(settings, True)
    forget(settings)
    log.info("rewound", source=source.label, parted=str(plan.parted))
    return plan


# --- Before anything is changed -------------------------------------------------------------------------------------


async def _recover(settings: Settings) -> None:
    """Stop cleanly what was not: pg_rewind insists on it. In single-user mode, so that nobody can connect.

    What that adds to the log comes after the place where the histories parted, and is undone with the rest.
    """
    control = await controldata.read(settings)
    if control.cleanly_stopped:
        return
    timeout = settings.postgres.start_timeout
    version = await versions.of_programs(settings, timeout=timeout)
    foundation = await configuration.foundation(settings, control, version=version, timeout=timeout)
    configuration.set_standby_signal(settings, False)  # there is no single-user standby
    configuration.clean_auto_conf(settings)
    path = configuration.write(settings, foundation, Replication(NOBODY, read_only=False))
    command = ("--single", "-D", str(settings.storage.data_dir), "-c", f"config_file={path}", "template1")
    try:
        await _run(settings, leftovers.SERVER, *command, limit=RECOVERY)
    finally:
        configuration.set_standby_signal(settings, True)


async def _checkpointed(settings: Settings, source: Peer) -> None:
    """Wait until the source has made a checkpoint since its promotion: before 16, pg_rewind goes by that.

    A superuser, or a role that may, asks for one; else the one that follows every promotion takes up to
    `checkpoint_timeout`.
    """
    try:
        async with asyncio.timeout(RECOVERY), await _connect(settings, source) as connection:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                async with asyncio.timeout(CHECKPOINT):
                    await connection.execute("checkpoint")
            while True:
                async with asyncio.timeout(settings.postgres.query_timeout):
                    cursor = await connection.execute(
                        "select timeline_id, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
                        " from pg_control_checkpoint()"
                    )
                row = await cursor.fetchone()
                assert row is not None
                if int(row[0]) == int(row[1], 16):
                    return
                await asyncio.sleep(LOOK)
    except TimeoutError:
        raise CompareFailed(
            f"{source.label} has not made a checkpoint since it was promoted, or does not answer"
        ) from None
    except psycopg.Error as error:
        raise CompareFailed(f"{source.label} cannot be asked for a checkpoint: {str(error).strip()}") from error


async def _plan(settings: Settings, source: Peer) -> Plan:
    """Where pg_rewind would turn back to. Raises Unrewindable if it would not, ToolFailed if the source is away."""
    try:
        said = await _pg_rewind(settings, source, "--dry-run")
    except ToolFailed as error:
        if "connect" in error.reason:
            raise
        raise Unrewindable(str(error)) from error
    parted, checkpoint = _PARTED.search(said), _CHECKPOINT.search(said)
    if parted is None or checkpoint is None:
        raise Unrewindable("pg_rewind sees nothing to do, although the logs differ")
    return Plan(Lsn.parse(parted[1]), Lsn.parse(checkpoint[1]))


async def _confirm(settings: Settings, source: Peer, plan: Plan) -> compare.Log:
    """See that the logs are the same up to where pg_rewind takes them to part; the source's log as it is now.

    From the beginning of the segment with the checkpoint on. Raises Unrewindable if they are not, or nobody can know.
    """
    control = await controldata.read(settings)
    theirs = await compare.their_log(settings, source)
    if theirs.identifier != control.system_identifier:
        raise Unrewindable(f"another database: {control.system_identifier} here, {theirs.identifier} there")
    begin = Lsn(int(plan.checkpoint) // control.wal_segment_size * control.wal_segment_size)
    try:
        here = await asyncio.to_thread(compare.digest, settings, control.timeline, begin, plan.parted)
        async with session(settings) as http:
            there = await compare.their_digest(settings, source, http, theirs.timeline, begin, plan.parted)
    except compare.NotHeld as error:
        raise Unrewindable(f"{source.label} does not hold what is to be compared: {error}") from error
    except BadCertificate as error:
        raise CompareFailed(str(error)) from error
    if here != there:
        raise Unrewindable(
            f"pg_rewind takes the histories to part at {plan.parted}, but the logs differ between {begin} and there"
        )
    return theirs


def _own_files(data_dir: Path) -> dict[str, bytes]:
    return {name: (data_dir / name).read_bytes() for name in OURS if (data_dir / name).exists()}


# --- The rewind -----------------------------------------------------------------------------------------------------


async def _pg_rewind(
    settings: Settings,
    source: Peer,
    *arguments: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> str:
    """Run pg_rewind; what it said."""

    def heard(line: str) -> None:
        if on_progress and (copied := _COPIED.search(line)):
            on_progress(int(copied[1]) << 10, int(copied[2]) << 10)

    return await _run(
        settings,
        "pg_rewind",
        *("--target-pgdata", str(settings.storage.data_dir), "--no-ensure-shutdown"),
        *("--source-server", configuration.conninfo(settings, source, database="postgres")),
        *(("--progress",) if on_progress else ()),
        *arguments,
        heard=heard,
        silence=settings.backup.idle_timeout + settings.postgres.start_timeout,
    )


def _put_back(settings: Settings, kept: dict[str, bytes]) -> None:
    for name in OURS:
        path = settings.storage.data_dir / name
        if name in kept:
            write_durably(path, kept[name], Account.of(settings))
        else:
            remove_durably(path)


async def _fetch_log(settings: Settings, source: Peer, *, since: Lsn, timeline: int) -> None:
    """Fetch what the source has written of its log meanwhile, as far as the data need it to become consistent.

    pg_rewind copies segment files while they are being written. Raises PostgresError if some of it is gone already.
    """
    control = await controldata.read(settings)
    size, data_dir, needed = control.wal_segment_size, settings.storage.data_dir, control.min_recovery_end
    limit = settings.postgres.start_timeout
    try:
        async with asyncio.timeout(limit), await _connect(settings, source) as connection:
            while await _flushed(connection) < needed:
                await asyncio.sleep(LOOK)
            for number in range(int(since) // size, int(needed) // size + 1):
                name = f"{timeline:08X}{number // (0x100000000 // size):08X}{number % (0x100000000 // size):08X}"
                cursor = await connection.execute("select pg_read_binary_file(%s, 0, %s)", (f"pg_wal/{name}", size))
                row = await cursor.fetchone()
                assert row is not None
                content = data_dir / "pg_wal" / name
                await asyncio.to_thread(write_durably, content, bytes(row[0]), Account.of(settings))
        sync_directory(data_dir / "pg_wal")
        begin = min(control.redo, needed)
        await asyncio.to_thread(wal.digest, data_dir, timeline, begin, needed)
    except TimeoutError:
        raise PostgresError(f"{source.label} has not flushed its log up to {needed} within {limit:g} s") from None
    except (psycopg.Error, wal.WalError) as error:
        raise PostgresError(f"the log that the rewound data need cannot be fetched: {str(error).strip()}") from error


async def _connect(settings: Settings, source: Peer) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    where = {**link.parameters(settings, source), **configuration.NOTICES}
    return await psycopg.AsyncConnection.connect(
        **where, dbname="postgres", application_name="manatee-rewind", autocommit=True
    )


async def _flushed(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> Lsn:
    row = await (await connection.execute("select pg_current_wal_flush_lsn()::text")).fetchone()
    assert row is not None
    return Lsn.parse(str(row[0]))


# --- Programs that must not outlive the sitter ----------------------------------------------------------------------


async def _run(
    settings: Settings,
    tool: str,
    *arguments: str,
    heard: Callable[[str], None] | None = None,
    limit: float | None = None,
    silence: float | None = None,
) -> str:
    """Run a PostgreSQL program to its end; what it said. Raises ToolFailed after `limit` seconds, or so long a silence.

    It ends with the sitter, however that ends: left alone, it would go on to write into data that have been replaced.
    """
    setpriv = shutil.which("setpriv")
    wrapper = (setpriv, "--pdeathsig", "KILL") if setpriv else ()
    command = (*wrapper, str(settings.postgres.bin_dir / tool), *arguments)
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=WORKING_DIRECTORY,
        env=environment(),
        start_new_session=True,
        **credentials(settings),
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(limit):
            while True:
                async with asyncio.timeout(silence):
                    line = (await process.stdout.readline()).decode(errors="replace")
                if not line:
                    break
                said = [*said[-99:], line.rstrip()]
                if heard:
                    heard(line)
            status = await process.wait()
    except TimeoutError:
        raise ToolFailed(tool, f"it does not come to an end; its last words: {' | '.join(said[-3:])}") from None
    finally:
        if process.returncode is None:
            await child.end(process, command)
    if status != 0:
        raise ToolFailed(tool, " | ".join(said[-3:]) or f"ended with status {status}", status=status)
    return "\n".join(said)

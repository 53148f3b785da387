"""This peer's PostgreSQL: the process together with the configuration that is in force in it.

It is started, reconfigured and stopped here, and nowhere else, so that what it was told last is known. A configuration
counts once a new connection has read it back; what wins over it is repaired where it can be, and always said.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Literal, LiteralString

import psycopg

from manatee.config import BadConfiguration, Settings
from manatee.log import Logger
from sitter.postgres import access, blank, configuration, controldata, queries, versions
from sitter.postgres.configuration import NOBODY, Replication, Wrong
from sitter.postgres.controldata import ControlData
from sitter.postgres.errors import Hung, PostgresError
from sitter.postgres.process import Postmaster
from sitter.postgres.queries import Facts

LOOK = 0.005
"""Seconds between two looks at whether a reload has come through."""

STOPPED = Replication(NOBODY, read_only=True)


class Server:
    """One PostgreSQL and what it was told. Not to be used from two tasks at once."""

    def __init__(self, settings: Settings, log: Logger) -> None:
        self._settings = settings
        self._log = log
        self._postmaster = Postmaster(settings, log)
        self._foundation: dict[str, str] = {}
        self._floors: dict[str, int] = {}
        self.replication = STOPPED
        """What it was told last."""
        self.standby = False
        """It was started as a standby and has not been promoted since."""
        self.repairs = 0
        """How often something else had won over the sitter's settings."""
        self.exited = self._postmaster.exited
        self.stale = asyncio.Event()
        """The operator's files are to be read again: `reread`."""
        self.refused: str | None = None
        """Why what they said last is not in force."""

    @property
    def _timeout(self) -> float:
        return self._settings.postgres.query_timeout

    @property
    def running(self) -> bool:
        return self._postmaster.running

    @property
    def ready(self) -> bool:
        """By its own word it lets people in: recovery is over, or far enough for a hot standby."""
        return self._postmaster.status == "ready"

    @property
    def last_words(self) -> str:
        return " | ".join(self._postmaster.last_lines[-3:]) or "it said nothing"

    def said(self, *words: str, since: tuple[str, ...] = ()) -> bool:
        """Whether one of these is in the newest lines of its log, and none of `since` in a later one."""
        for line in reversed(self._postmaster.last_lines):
            if any(each in line for each in since):
                return False
            if any(each in line for each in words):
                return True
        return False

    @property
    def returncode(self) -> int | None:
        """How the last postmaster ended; negative: by that signal."""
        return self._postmaster.returncode

    async def obituary(self) -> str:
        """What a server that has ended said last, all of it read."""
        return await self._postmaster.obituary()

    async def opening(self, *, asked: float) -> None:
        """Return when it may be worth while to ask whether it lets anyone in: by its own word, which costs next to
        nothing to read, or because it has ended; and now and then anyway.

        `asked` is for how many seconds it has been asked already: in a recovery of hours nobody waits for the moment.
        """
        if self.ready:  # and turned us away, or was not through when we asked
            await asyncio.sleep(min(0.5, max(0.01, asked / 10)))
            return
        ends = time.monotonic() + min(1.0, max(0.1, asked))
        while self.running and self._postmaster.status != "ready" and time.monotonic() < ends:
            await self._postmaster.exit(min(0.1, max(0.005, asked / 100)))

    @property
    def is_standby_on_disk(self) -> bool:
        """Started on its data as they are, it would be a standby."""
        return (self._settings.storage.data_dir / "standby.signal").exists()

    async def start(self, replication: Replication, *, as_standby: bool) -> None:
        """Start it; returns when it listens, which may be long before it lets anyone in. Raises PostgresError.

        A primary that has died while nobody stopped it begins with what it had: to ask the programs what the operator's
        file says takes longer than the start.
        """
        control: ControlData | None = None
        if as_standby or self.standby or not self._foundation or self.replication == STOPPED:
            control = await self._lay_foundation(as_standby=as_standby)
        foundation, self._foundation = self._foundation, {}

        def prepare() -> None:
            if control is not None:  # at once: a thread would outlive a cancellation, and PostgreSQL may run by then
                blank.remove_blank(self._settings.storage.data_dir, control.wal_segment_size, self._log)
            configuration.set_standby_signal(self._settings, as_standby)
            self._report_taken(configuration.clean_auto_conf(self._settings))

        path = configuration.write(self._settings, foundation, replication)
        self.replication, self.standby = replication, as_standby
        await self._postmaster.start(path, timeout=self._settings.postgres.start_timeout, first=prepare)
        self._foundation = foundation

    async def _lay_foundation(self, *, as_standby: bool) -> ControlData | None:
        """PostgreSQL may run. Returns what a standby's control file says."""
        timeout = self._settings.postgres.start_timeout
        version = await versions.check(self._settings, timeout=timeout)
        control = await controldata.read(self._settings, timeout=timeout) if as_standby else None
        self._floors = control.floors if control else {}
        foundation = await configuration.foundation(self._settings, control, version=version, timeout=timeout)
        try:
            access.lay_out(self._settings)
        except BadConfiguration as error:
            raise PostgresError(str(error)) from error
        self._foundation = foundation
        return control

    async def configure(self, replication: Replication) -> None:
        """Change what it was told, without a restart; returns when new connections see it.

        A standby that does not let anyone in yet is told, and believed. Raises PostgresError if it does not come
        through within `postgres.query_timeout`.
        """
        if self._postmaster.status in ("starting", "standby"):
            self._tell(replication)
            return
        async with self.configured(replication):
            pass

    @contextlib.asynccontextmanager
    async def configured(
        self, replication: Replication, *, timeout: float | None = None
    ) -> AsyncIterator[queries.Connection]:
        """As `configure`, of a server that lets us in; within, the new connection that sees it.

        All that is done over it has `timeout` seconds (`postgres.query_timeout`); one that does not answer raises Hung
        after `postgres.query_timeout` in any case.
        """
        self._tell(replication)
        deadline = time.monotonic() + self._timeout
        while True:
            answer = asyncio.timeout(self._timeout)
            try:
                async with answer, queries.connect(self._settings, timeout=timeout) as connection:
                    wrong = await self._wrong(connection, replication)
                    if not wrong:
                        answer.reschedule(None)
                        yield connection
                        return
            except TimeoutError:
                if not answer.expired():
                    raise
                raise Hung(f"PostgreSQL did not say within {self._timeout:g} s what its settings are") from None
            self.repair(wrong)
            if time.monotonic() > deadline:
                raise PostgresError(f"settings do not come into force: {', '.join(map(str, wrong))}")
            await asyncio.sleep(LOOK)

    def _tell(self, replication: Replication) -> None:
        configuration.write(self._settings, self._foundation, replication)
        self.replication = replication
        self._postmaster.reload()

    def obeys(self, facts: Facts) -> bool:
        """Whether what a look found is what it was told. ALTER SYSTEM, for one, wins over the sitter's file."""
        found = {"synchronous_standby_names": facts.standby_names, "primary_conninfo": facts.upstream}
        if not facts.gate_overridden:
            found["default_transaction_read_only"] = "on" if facts.read_only else "off"
        return facts.synchronous_commit == "on" and found.items() <= self.replication.values().items()

    async def outgrown(self) -> str | None:
        """Which settings of this standby are smaller than its primary's, so that replay waits for a restart.

        None if none is. Raises PostgresError.
        """
        floors = (await controldata.read(self._settings, timeout=self._timeout)).floors
        if floors == self._floors:
            return None
        smaller = await configuration.smaller(self._settings, floors, timeout=self._timeout)
        self._floors = self._floors if smaller else floors
        return smaller

    async def _wrong(self, connection: queries.Connection, replication: Replication) -> list[Wrong]:
        expected = {name: value for name, value in self._foundation.items() if name in configuration.PROMISED}
        try:
            return await configuration.read_back(connection, self._settings, expected | replication.values())
        except psycopg.Error as error:
            raise PostgresError(f"PostgreSQL does not say what its settings are: {error}") from error

    @property
    def expected(self) -> dict[str, str]:
        """Every setting that it was told, as pg_settings shows it."""
        return {**self._foundation, **self.replication.values()}

    def repair(self, wrong: Iterable[Wrong]) -> bool:
        """Put right what can be, without waiting for it; whether there was anything."""
        taken = {}
        if any(one.source.endswith("postgresql.auto.conf") for one in wrong):
            taken = configuration.clean_auto_conf(self._settings)
            self._report_taken(taken)
            self._postmaster.reload()
        return bool(taken)

    def _report_taken(self, taken: dict[str, str]) -> None:
        if taken:
            self.repairs += 1
            self._log.warning("took the sitter's settings out of postgresql.auto.conf", settings=taken)

    async def reread(self) -> None:
        """Take up what the operator's files say now, as far as that needs no restart; never raises for what they say.

        What cannot be used changes nothing, and is `refused`.
        """
        self.stale.clear()
        try:
            await self._lay_foundation(as_standby=self.standby)
            await self.configure(self.replication)
        except asyncio.CancelledError:
            self.stale.set()  # given up for something newer: they are still to be read
            raise
        except (PostgresError, OSError) as error:
            self.refused = str(error)
            self._log.error("PostgreSQL goes on with the settings that it had", error=self.refused)
        else:
            self.refused = None
            self._log.info("PostgreSQL has read its settings again")

    async def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """Stop it and see that nothing of it is left; nothing to do if it does not run. Raises StopFailed."""
        await self._postmaster.stop(mode, timeout=self._settings.postgres.handover_timeout)
        self.replication = STOPPED

    async def stop_cleanly(self) -> None:
        """Stop it so that the sync receives the shutdown record: checkpoint, gate, other walsenders ended, fast stop.

        Within `postgres.handover_timeout` seconds; what has not stopped by then is stopped at once. From the gate on
        nobody can write, so nothing is waited for that the stop itself does not need.
        """
        begun = time.monotonic()
        limit = self._settings.postgres.handover_timeout
        if not self.standby:
            try:
                async with queries.connect(self._settings, timeout=limit) as connection:
                    await connection.execute("checkpoint")
                    self._tell(replace(self.replication, read_only=True))
                    await connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_replication where application_name <> %s",
                        [self.replication.commits_wait_for],
                    )
            except (PostgresError, psycopg.Error, OSError) as error:
                self._log.warning("stopping at once: no clean stop is possible", error=str(error))
                await self.stop("immediate")
        left = max(0.1, limit - (time.monotonic() - begun))
        await self._postmaster.stop("fast", timeout=left)
        self.replication = STOPPED

    async def shut_out_clients(self) -> None:
        """Close the write gate and end every client's session. Walsenders go on. Raises PostgresError."""
        await self.configure(replace(self.replication, read_only=True))
        await self._execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )

    async def restartpoint(self) -> None:
        """Have a standby that runs begin its next recovery as late as it can; nothing to do if none runs.

        Raises PostgresError.
        """
        if self.running and self.standby:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Have PostgreSQL make a checkpoint; returns when it is made. Raises PostgresError."""
        await self._execute("checkpoint", timeout=self._settings.postgres.start_timeout)

    async def _execute(self, statement: LiteralString, *values: str, timeout: float | None = None) -> None:
        try:
            async with queries.connect(self._settings, timeout=timeout or self._timeout) as connection:
                await connection.execute(statement, values)
        except psycopg.Error as error:
            raise PostgresError(f"{statement.split(maxsplit=1)[0]}: {error}") from error

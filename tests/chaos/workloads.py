"""A client's workers: each does one kind of transaction again and again, and says of each what became of it.

- Inserts of rows that are unique.
- Read-modify-write of registers: what was found is part of the answer.
- Appends to lists that others append to, and reads of those lists at whoever is, or was, the primary.
- The *stubborn* insert at one peer whatever the shard says, and override `default_transaction_read_only`: the write
  gate is a courtesy, and no promise rests on it.

A client that has waited too long cuts its socket and never sends a cancel: PostgreSQL would answer a cancelled wait for
the sync with success (and a warning, which is taken for "nobody knows").
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from typing import Any, TextIO

import psycopg

from manatee.client import NoPrimary, within
from tests.chaos.history import Operation, Outcome

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Connect = Callable[[], Awaitable[Connection]]

PATIENCE = 4.0
"""Seconds for one operation."""
REGISTERS = 3
LIST_SECONDS = 5
"""How long one list is appended to; all clients then turn to the next."""

TABLES = f"""
CREATE TABLE inserts (value bigint PRIMARY KEY);
CREATE TABLE registers (key int PRIMARY KEY, version bigint NOT NULL, token bigint NOT NULL);
INSERT INTO registers SELECT key, 0, 0 FROM generate_series(0, {REGISTERS - 1}) AS key;
CREATE TABLE lists (key int PRIMARY KEY, items bigint[] NOT NULL);
"""

_WHERE = "host(inet_server_addr()), ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
"""The server, and the timeline that it writes."""

SESSION = "-c lock_timeout=2000 -c idle_in_transaction_session_timeout=3000"
"""A client that was cut off in the middle must not keep its row locks. Neither of these ends a commit's wait."""
STUBBORN = f"{SESSION} -c default_transaction_read_only=off"


def uncertain(error: psycopg.Error) -> bool:
    """Whether a failed commit may have been carried out: it is not known, unless the server said ERROR and went on."""
    diagnostic = error.diag
    return diagnostic.severity_nonlocalized != "ERROR" or (diagnostic.sqlstate or "")[:2] in ("08", "57", "58", "XX")


class Worker:
    """`run` is its life, until it is cancelled. `number` and `shift` make its values unique."""

    pause = 0.03
    """Seconds between two operations."""
    persistent = False
    """Whether it keeps its connection to a server that has said no."""

    def __init__(self, client: str, number: int, connect: Connect, history: TextIO, *, shift: int = 0) -> None:
        self._client, self._number, self._connect, self._history = client, number, connect, history
        self._count = shift * 1_000_000
        self._warnings: list[str] = []
        # Where its choices matter to nobody: which register, which list.
        self._random = random.Random(number)

    async def run(self) -> None:
        while True:
            try:
                connection = await self._connect()
            except (NoPrimary, psycopg.Error, OSError, TimeoutError):
                await asyncio.sleep(0.1)
                continue
            connection.add_notice_handler(self._notice)
            try:
                while await self._operation(connection):
                    await asyncio.sleep(self.pause)
            finally:
                await connection.close()
            await asyncio.sleep(self.pause)

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            self._warnings.append(diagnostic.message_primary or "")

    async def _operation(self, connection: Connection) -> bool:
        """One operation; False if the connection is of no more use."""
        raise NotImplementedError

    def _value(self) -> int:
        self._count += 1
        return self._number * 1_000_000_000 + self._count

    async def _attempt(self, record: dict[str, Any], connection: Connection, work: Coroutine[Any, Any, None]) -> bool:
        """Do it, and write down what became of it. `work` completes the record, `sent` first of all."""
        self._warnings.clear()
        record.update(client=self._client, began=time.monotonic(), sent=None)
        outcome: Outcome = "ok"
        useful = True
        try:
            await within(connection, PATIENCE, work)
            if self._warnings:
                outcome, record["error"] = "unknown", self._warnings[0]
        except (TimeoutError, psycopg.Error, OSError) as error:
            known = record["sent"] is None or (isinstance(error, psycopg.Error) and not uncertain(error))
            outcome = "no" if known else "unknown"
            record["error"] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            useful = self.persistent and isinstance(error, psycopg.Error) and not uncertain(error)
        except asyncio.CancelledError:
            self._write(record, "unknown" if record["sent"] else "no")
            raise
        self._write(record, outcome)
        return useful

    def _write(self, record: dict[str, Any], outcome: Outcome) -> None:
        operation = Operation(**record, ended=time.monotonic(), outcome=outcome)
        self._history.write(json.dumps(asdict(operation)) + "\n")


class Inserter(Worker):
    async def _operation(self, connection: Connection) -> bool:
        record: dict[str, Any] = {"kind": "insert", "value": self._value()}

        async def work() -> None:
            record["sent"] = time.monotonic()
            cursor = await connection.execute(f"INSERT INTO inserts VALUES (%s) RETURNING {_WHERE}", (record["value"],))
            record["peer"], record["timeline"] = await _row(cursor)

        return await self._attempt(record, connection, work())


class StubbornInserter(Inserter):
    pause = 0.2
    persistent = True


class RegisterWriter(Worker):
    async def _operation(self, connection: Connection) -> bool:
        key = self._random.randrange(REGISTERS)
        record: dict[str, Any] = {"kind": "register", "key": key, "value": self._value()}

        async def work() -> None:
            await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            cursor = await connection.execute("SELECT version, token FROM registers WHERE key = %s FOR UPDATE", (key,))
            record["seen"] = list(await _row(cursor))
            cursor = await connection.execute(
                f"UPDATE registers SET version = %s, token = %s WHERE key = %s RETURNING {_WHERE}",
                (record["seen"][0] + 1, record["value"], key),
            )
            record["peer"], record["timeline"] = await _row(cursor)
            record["sent"] = time.monotonic()
            cursor = await connection.execute("COMMIT")
            if cursor.statusmessage != "COMMIT":
                raise psycopg.OperationalError(f"the commit was answered with {cursor.statusmessage}")

        return await self._attempt(record, connection, work())


class ListAppender(Worker):
    async def _operation(self, connection: Connection) -> bool:
        key = list_now()
        record: dict[str, Any] = {"kind": "append", "key": key, "value": self._value()}

        async def work() -> None:
            record["sent"] = time.monotonic()
            cursor = await connection.execute(
                "INSERT INTO lists VALUES (%(key)s, ARRAY[%(value)s::bigint]) ON CONFLICT (key)"
                f" DO UPDATE SET items = lists.items || %(value)s::bigint RETURNING items, {_WHERE}",
                {"key": key, "value": record["value"]},
            )
            record["seen"], record["peer"], record["timeline"] = await _row(cursor)

        return await self._attempt(record, connection, work())


class ListReader(Worker):
    """Keeps to the server that it has for as long as that answers, deposed or not."""

    pause = 0.2

    async def _operation(self, connection: Connection) -> bool:
        record: dict[str, Any] = {"kind": "read", "key": list_now()}

        async def work() -> None:
            cursor = await connection.execute(
                "SELECT pg_is_in_recovery(), host(inet_server_addr()),"
                " coalesce((SELECT items FROM lists WHERE key = %s), '{}')",
                (record["key"],),
            )
            standby, record["peer"], record["seen"] = await _row(cursor)
            if standby:
                raise psycopg.OperationalError("a standby by now")

        return await self._attempt(record, connection, work())


def list_now() -> int:
    return int(time.monotonic() // LIST_SECONDS)


async def _row(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = await cursor.fetchone()
    if row is None:
        raise psycopg.OperationalError("no row")
    return row

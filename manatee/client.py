"""Topology for applications: who is the primary now, and a connection to it that has been checked.

    async with Topology("10.0.1.1:2181", "1.moray") as topology:
        connection = await connect_primary(topology, dbname="moray")

Without ZooKeeper, from the shard's hosts alone: `connect_writable(addresses)`, or `libpq_url(addresses)` for any client
that speaks libpq. What is known of a shard stays known while ZooKeeper is away; whether a server is the primary is in
every case asked of the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from manatee.cluster import ClusterState, Peer

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from manatee.config import ZooKeeper
    from manatee.coordination import Coordination

    Connection = AsyncConnection[tuple[Any, ...]]

Result = TypeVar("Result")

_ATTEMPT = 3.0
"""Seconds for one server to accept a connection and say what it is."""
_ARRIVAL = 10.0
_PAUSES = (0.05, 0.25)
"""Seconds between two attempts: the first pause, and the longest it grows to."""

# A server whose machine is gone answers nothing at all: without these a client waits for it for hours.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


_PREAMBLE = re.compile(r"(connection (failed|is bad): )?(connection to server (at|on) .*? failed: )?")


class NoPrimary(Exception):
    """No server could be found in time that is the primary and takes writes; the message says what was tried last."""


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


@dataclass(frozen=True)
class Chain:
    """A shard as one cluster state has it."""

    generation: int
    primary: Peer
    sync: Peer | None
    asyncs: tuple[Peer, ...]

    @classmethod
    def of(cls, state: ClusterState) -> Self:
        return cls(state.generation, state.primary, state.sync, state.asyncs)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All of them, from the primary on down."""
        return (self.primary, *((self.sync,) if self.sync else ()), *self.asyncs)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Their PostgreSQL servers, from the primary on down."""
        return tuple(postgres_address(peer.pg_url) for peer in self.peers)


class Topology:
    """Follows one shard in ZooKeeper.

    `zookeeper` is `host:port,...` or settings; `shard` a name or an absolute path. `on_change` is called in the event
    loop with every new chain. Used as an async context manager; entering raises `manatee.coordination.Unreachable`
    when ZooKeeper is not there within `arrival` seconds.
    """

    def __init__(
        self,
        zookeeper: str | ZooKeeper,
        shard: str,
        *,
        on_change: Callable[[Chain], None] | None = None,
        arrival: float = _ARRIVAL,
    ) -> None:
        from manatee.config import ZooKeeper

        self._settings = ZooKeeper(servers=zookeeper) if isinstance(zookeeper, str) else zookeeper
        self._root = shard if shard.startswith("/") else f"/manatee/{shard}"
        self._on_change = on_change
        self._arrival = arrival
        self._chain: Chain | None = None
        self._news = asyncio.Event()
        self._look_again = asyncio.Event()
        self._coordination: Coordination | None = None
        self._follower: asyncio.Task[None] | None = None

    @property
    def chain(self) -> Chain | None:
        """The shard as it was last known; None while nobody has set it up."""
        return self._chain

    async def changed(self, seen: Chain | None) -> Chain:
        """The chain, as soon as it is another than `seen`. Waits for ever: put a deadline around it."""
        while self._chain is None or self._chain == seen:
            await self._news.wait()
        return self._chain

    async def __aenter__(self) -> Self:
        import structlog

        from manatee.coordination import Coordination

        log = structlog.get_logger().bind(shard=self._root)
        self._coordination = Coordination(self._settings, self._root, log, self._look_again.set)
        try:
            await self._coordination.start(within=self._arrival)
            await self._look(self._coordination)
        except BaseException:
            await self._coordination.close()
            raise
        self._follower = asyncio.create_task(self._follow(self._coordination), name=f"topology of {self._root}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        if self._coordination is not None:
            await self._coordination.close()

    async def _follow(self, coordination: Coordination) -> None:
        from manatee.coordination import CoordinationError

        while True:
            await self._look_again.wait()
            try:
                await self._look(coordination)
            except CoordinationError:
                # What was known stays known; the session's return is a change of its own.
                await asyncio.sleep(_PAUSES[1])
                self._look_again.set()

    async def _look(self, coordination: Coordination) -> None:
        self._look_again.clear()
        view = await coordination.read()
        if view.state is None:
            return
        chain = Chain.of(view.state)
        if chain != self._chain:
            self._chain = chain
            # Whoever waits is woken once; who comes later waits for the next news.
            self._news.set()
            self._news.clear()
            if self._on_change is not None:
                self._on_change(chain)


def read_chain(zookeeper: str, shard: str) -> Chain | None:
    """For programs without an event loop: the shard as it is now, or None if nobody has set it up."""

    async def read() -> Chain | None:
        async with Topology(zookeeper, shard) as topology:
            return topology.chain

    return asyncio.run(read())


async def connect_primary(topology: Topology, *, deadline: float = 30.0, **parameters: Any) -> Connection:
    """A connection to the shard's primary, in autocommit mode, after the server itself has said that it is the primary
    and takes writes.

    Follows the shard when it moves meanwhile. `parameters` are psycopg's (`dbname`, `user`, `password`, `sslmode`, ...)
    and win over what the peer's pgUrl says. Raises NoPrimary after `deadline` seconds.
    """
    ends = time.monotonic() + deadline
    failure: str = _CutShort("the shard is not set up")
    pauses = _pauses()
    while (left := ends - time.monotonic()) > 0:
        chain = topology.chain
        pause = left
        if chain is not None:
            winner: Connection | None = None
            attempt = asyncio.create_task(_try_peer(chain.primary, min(_ATTEMPT, left), parameters))
            news = asyncio.create_task(topology.changed(chain))
            try:
                await asyncio.wait({attempt, news}, return_when=asyncio.FIRST_COMPLETED)
                if not attempt.done():
                    pauses = _pauses()
                    continue
                outcome = attempt.result()
                if not isinstance(outcome, str):
                    winner = outcome
                    return winner
            finally:
                await _abandon([attempt, news], keep=winner)
            failure = _the_better(failure, outcome)
            pause = next(pauses)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(pause, max(0.0, ends - time.monotonic()))):
                await topology.changed(chain)
                pauses = _pauses()  # a new primary is a matter of moments
    raise NoPrimary(f"no writable primary within {deadline:g} s: {failure}")


async def connect_writable(addresses: Sequence[Address], *, deadline: float = 30.0, **parameters: Any) -> Connection:
    """As `connect_primary`, without ZooKeeper: all of the shard's servers are asked at once, until one takes writes.

    Raises NoPrimary after `deadline` seconds.
    """
    if not addresses:
        raise ValueError("no host was given")
    ends = time.monotonic() + deadline
    pauses = _pauses()
    failure: str = _CutShort()
    while (left := ends - time.monotonic()) > 0:
        attempts = [asyncio.create_task(_try(each, min(_ATTEMPT, left), parameters)) for each in addresses]
        winner: Connection | None = None
        failures = []
        try:
            for earliest in asyncio.as_completed(attempts):
                outcome = await earliest
                if not isinstance(outcome, str):
                    winner = outcome
                    return winner
                failures.append(outcome)
        finally:
            await _abandon(attempts, keep=winner)
        cut_short = all(isinstance(each, _CutShort) for each in failures)
        failure = _the_better(failure, (_CutShort if cut_short else str)("; ".join(failures)))
        await asyncio.sleep(min(next(pauses), max(0.0, ends - time.monotonic())))
    raise NoPrimary(f"no writable primary within {deadline:g} s: {failure}")


class _CutShort(str):
    """A failure that says no more than that our own time was over."""

    __slots__ = ()


def _the_better(known: str, new: str) -> str:
    """The failure to report: the last one that says something."""
    return new if isinstance(known, _CutShort) or not isinstance(new, _CutShort) else known


def _pauses() -> Iterator[float]:
    pause, longest = _PAUSES
    while True:
        yield pause
        pause = min(pause * 1.5, longest)


async def _abandon(attempts: Iterable[asyncio.Task[Any]], *, keep: Connection | None = None) -> None:
    """End what is under way, and close connections that came too late."""
    attempts = list(attempts)
    for attempt in attempts:
        attempt.cancel()
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        if hasattr(outcome, "pgconn") and outcome is not keep and not isinstance(outcome, BaseException):
            await outcome.close()


async def _try_peer(peer: Peer, seconds: float, parameters: Mapping[str, Any]) -> Connection | str:
    try:
        address = postgres_address(peer.pg_url)
    except ValueError as error:
        return f"{peer.id}: {error}"
    return await _try(address, seconds, parameters)


async def _try(address: Address, seconds: float, parameters: Mapping[str, Any]) -> Connection | str:
    """A connection to a server that takes writes, or the reason why there is none."""
    import psycopg

    wanted = {"autocommit": True, "target_session_attrs": "any", **_KEEPALIVES, **address.parameters, **parameters}
    ends = time.monotonic() + seconds
    try:
        async with asyncio.timeout(seconds):
            connection = await psycopg.AsyncConnection.connect(**wanted)
    except TimeoutError:
        return _silence(address, seconds)
    except (psycopg.Error, OSError) as error:
        return f"{address}: {first_line(error)}"
    try:
        refusal = await within(connection, max(0.1, ends - time.monotonic()), _refusal(connection))
    except TimeoutError:
        await connection.close()
        return _silence(address, seconds)
    except psycopg.Error as error:
        refusal = first_line(error)
    except BaseException:
        await connection.close()
        raise
    if refusal is None:
        return connection
    await connection.close()
    return f"{address}: {refusal}"


def _silence(address: Address, seconds: float) -> str:
    return (str if seconds >= _ATTEMPT else _CutShort)(f"{address}: no answer within {seconds:.1f} s")


async def _refusal(connection: Connection) -> str | None:
    """Why this server is not the one to write to; None if it is."""
    cursor = await connection.execute("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
    row = await cursor.fetchone()
    if not connection.autocommit:
        await connection.rollback()
    if row is None or row[0]:
        return "it is a standby"
    return "it is read-only" if row[1] != "off" else None


async def within(connection: Connection, seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work` on a connection; raises TimeoutError after `seconds`, and the connection is cut then.

    Cancelling psycopg instead would ask the server to cancel and wait for its answer, up to ten seconds more: a server
    that hangs gives none.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _cut(connection, task)
        raise
    if task.done():
        return task.result()
    await _cut(connection, task)
    raise TimeoutError


async def _cut(connection: Connection, task: asyncio.Task[Any]) -> None:
    """Shut the socket down under `task`, which ends it with an error."""
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    await asyncio.gather(task, return_exceptions=True)


def first_line(error: BaseException) -> str:
    """An error of libpq in one line, without the address, which whoever asked knows, and without what it says twice."""
    line = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return _PREAMBLE.sub("", line)

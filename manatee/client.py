"""For applications: who is the primary now, and a connection to it that has been checked.

    async with Topology("10.0.1.1:2181", "1.moray") as topology:
        connection = await connect_primary(topology, dbname="moray")

Without ZooKeeper, from the shard's hosts alone: `connect_writable(addresses)`, or `libpq_url(addresses)` for any client
that speaks libpq. Whether a server is the primary is in every case asked of the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from manatee.address import Address, libpq_url, postgres_address
from manatee.cluster import Peer
from manatee.querying import first_line, within
from manatee.topology import Chain, Topology, read_chain

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    Connection = AsyncConnection[tuple[Any, ...]]

__all__ = [
    "Address",
    "Chain",
    "NoPrimary",
    "Topology",
    "connect_primary",
    "connect_writable",
    "first_line",
    "libpq_url",
    "postgres_address",
    "read_chain",
    "within",
]

_ATTEMPT = 3.0
"""Seconds for one server to accept a connection and say what it is."""
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


class NoPrimary(Exception):
    """No server could be found in time that is the primary and takes writes; the message says what was tried last."""


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

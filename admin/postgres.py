"""Asks the peers' PostgreSQL servers how they are: all at once, each within a deadline, whatever hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import psycopg

from admin.observed import Observed, Walsender
from manatee import link
from manatee.address import postgres_address
from manatee.cluster import Peer
from manatee.config import Settings
from manatee.lsn import Lsn
from manatee.querying import first_line, within

DEADLINE = 4.0
"""Seconds for one peer, from the first packet to the last row."""

_WALSENDERS = """
    SELECT application_name, host(client_addr), state, sync_state, sent_lsn, write_lsn, flush_lsn, replay_lsn
    FROM pg_stat_replication ORDER BY backend_start
"""
_PENDING = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name"
_MODE = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') <> 'off'"
# A standby that streams and has replayed all it received is not behind, however long ago the last commit was.
_LAG = """
    SELECT CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()
             AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') THEN 0
        ELSE EXTRACT(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::float8
"""


async def observe(
    peers: Iterable[Peer], settings: Settings | None = None, *, deadline: float = DEADLINE
) -> dict[str, Observed]:
    """What each peer's PostgreSQL says, by the peer's id; one that cannot be asked is an `Observed` with the error.

    With the `settings` of a peer of the same shard they are asked as the peers ask each other, by the role and with the
    encryption that are set there; without, as the user whom ZooKeeper names.
    """
    asked = list(peers)
    answers = await asyncio.gather(*(_observe(peer, settings, deadline) for peer in asked))
    return {peer.id: answer for peer, answer in zip(asked, answers, strict=True)}


def _parameters(peer: Peer, settings: Settings | None) -> dict[str, Any]:
    """How to connect. Raises ValueError for an address that is none."""
    if settings is None or (settings.postgres.replication_user is None and settings.tls is None):
        return postgres_address(peer.pg_url).parameters
    return {**link.parameters(settings, peer), "dbname": "postgres"}


async def _observe(peer: Peer, settings: Settings | None, deadline: float) -> Observed:
    ends = time.monotonic() + deadline
    try:
        async with asyncio.timeout(deadline):
            connection = await psycopg.AsyncConnection.connect(
                **_parameters(peer, settings),
                autocommit=True,
                application_name="manatee-adm",
                target_session_attrs="any",  # whatever PGTARGETSESSIONATTRS says
            )
        try:
            return await within(connection, ends - time.monotonic(), _ask(connection))
        finally:
            await connection.close()
    except TimeoutError:
        return Observed(error=f"no answer within {deadline:g} s")
    except (psycopg.Error, OSError, ValueError) as error:
        return Observed(error=first_line(error))


async def _ask(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> Observed:
    rows = await (await connection.execute(_WALSENDERS)).fetchall()
    behind = await (await connection.execute(_LAG)).fetchone()
    mode = await (await connection.execute(_MODE)).fetchone()
    pending = await (await connection.execute(_PENDING)).fetchall()
    assert behind is not None
    assert mode is not None
    return Observed(
        walsenders=tuple(_walsender(row) for row in rows),
        lag=behind[0],
        in_recovery=mode[0],
        read_only=mode[1],
        pending_restart=tuple(name for (name,) in pending),
    )


def _walsender(row: tuple[Any, ...]) -> Walsender:
    name, address, state, sync_state, *positions = row
    sent, write, flush, replay = (Lsn.parse(position) if position else None for position in positions)
    return Walsender(name or "", address, state or "", sync_state or "", sent, write, flush, replay)

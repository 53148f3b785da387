"""Physical replication slots: so that a peer that was away for a while finds the WAL that it needs.

Every peer keeps one for every other, wherever in the chain they stand: who follows whom changes, and a slot that would
have to be made then would be too late. The sitter moves a slot on by what the other peer says of itself: where its
recovery would begin. That is more than it needs to stream, and just what it needs to be compared (`compare`), too.
Who is being restored has one from the beginning, so that a snapshot which takes hours to arrive can be followed.

Standbys do not name a slot (`primary_slot_name` is empty). A slot that is not there yet, that was invalidated, or that
an old connection still holds would keep a standby from streaming; one that it held would keep the oldest transaction
that its queries saw, and the primary from cleaning up, for as long as it is away.

A slot keeps `max_slot_wal_keep_size` at most. What has fallen behind that is lost, and goes; it comes back with its
peer. Whoever drops a slot by hand for a peer that is gone for good is not contradicted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from manatee.lsn import Lsn

PREFIX = "manatee_peer_"
LONGEST = 63
"""Bytes that PostgreSQL allows in the name of a slot."""

_LOOK = """
select slot_name, restart_lsn::text, wal_status from pg_replication_slots
where slot_type = 'physical' and not temporary and starts_with(slot_name, %s)
"""


@dataclass(frozen=True)
class Slot:
    """A slot of ours, as it is."""

    name: str
    restart: Lsn | None
    """From where on it keeps WAL; None once it keeps none."""
    status: str | None
    """`wal_status`: `reserved`, `extended`, `unreserved`, `lost`."""

    @property
    def lost(self) -> bool:
        return self.restart is None or self.status == "lost"


@dataclass(frozen=True)
class Plan:
    """What has to be done."""

    drop: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    advance: tuple[tuple[str, Lsn], ...] = ()


def name(peer_id: str) -> str:
    """The slot's name of the peer with this id.

    >>> name("10.65.68.14:5432:12345")
    'manatee_peer_10_65_68_14_5432_12345'
    """
    whole = PREFIX + re.sub(r"[^a-z0-9_]", "_", peer_id.lower())
    if len(whole) <= LONGEST:
        return whole
    digest = hashlib.sha256(peer_id.encode()).hexdigest()[:12]
    return f"{whole[: LONGEST - len(digest) - 1]}_{digest}"


def plan(found: Iterable[Slot], others: Mapping[str, Lsn] | None, me: str) -> Plan:
    """What to do about the slots that were `found`.

    `others` are the peers that are present, by id, with where the recovery of each would begin, 0/0 where that is not
    known yet; None where no slots are kept. The slots of those that are absent stay until they are lost. `me` is our
    own id: data that came from another peer may have brought a slot for us.
    """
    slots = {slot.name: slot for slot in found}
    if others is None:
        return Plan(drop=tuple(sorted(slots)))
    wanted = {name(peer): position for peer, position in others.items() if peer != me}
    drop = {slot.name for slot in slots.values() if slot.lost or slot.name == name(me)}
    create = [each for each in wanted if each not in slots]
    advance = [
        (each, position)
        for each, position in wanted.items()
        if each in slots and each not in drop and position > (slots[each].restart or Lsn(0))
    ]
    return Plan(tuple(sorted(drop)), tuple(create), tuple(advance))


async def look(connection: psycopg.AsyncConnection[Any]) -> list[Slot]:
    """Our slots on the local server. Raises psycopg.Error."""
    rows = await (await connection.execute(_LOOK, [PREFIX])).fetchall()
    return [Slot(name, None if restart is None else Lsn.parse(restart), status) for name, restart, status in rows]


async def carry_out(connection: psycopg.AsyncConnection[Any], plan: Plan) -> None:
    """Each statement by itself, over a superuser's connection in autocommit mode. Raises psycopg.Error.

    On a standby as well as on a primary: slots are of the server that has them, and write no WAL.
    """
    for each in plan.drop:
        await connection.execute("select pg_drop_replication_slot(%s)", [each])
    for each in plan.create:
        await connection.execute("select pg_create_physical_replication_slot(%s, true)", [each])
    for each, position in plan.advance:
        await connection.execute("select pg_replication_slot_advance(%s, %s::pg_lsn)", [each, str(position)])

"""How our write-ahead log stands to an upstream's: a prefix of it, ahead of it, or departed from it.

Two questions, because neither is enough. The histories of the timelines say where two servers parted, if they were
promoted apart; but two promotions can give the same number to two timelines with the same history. So the bytes are
compared as well, from our latest checkpoint to the end of our last complete record: what lies before the checkpoint
was once compared, or came from a restore, and cannot have changed since. The upstream's digest comes from its backup
server.

Our own end is looked up before the upstream's: as long as we follow it, ours cannot overtake it in between.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import aiohttp
import psycopg

from manatee import link, wal
from manatee.cluster import Comparison, Peer
from manatee.config import Settings
from manatee.lsn import Lsn
from manatee.peerserver import NoToken, bearer
from sitter.postgres import controldata, versions, wal_end
from sitter.postgres.controldata import ControlData
from sitter.postgres.errors import CompareFailed
from sitter.postgres.wal_end import PAGE, Stretch
from sitter.view import Parting

_ATTEMPTS = 40
"""Requests at most for finding the page in which two logs part: enough for a terabyte."""


@dataclass(frozen=True)
class Standing:
    """How our log stands to an upstream's at one moment."""

    answer: Comparison | None
    """None if it cannot be known: the upstream no longer holds, or we do not, what would have to be compared."""
    reason: str
    """For people: up to where, or where they part."""
    upstream_flush: Lsn
    """What the upstream had flushed then (a standby: received and flushed): the mark to reach."""
    timeline: int
    """The upstream's then."""
    parting: Parting | None = None
    """How the logs have diverged, if they have."""


@dataclass(frozen=True)
class Log:
    """What one side has."""

    identifier: str
    """The system identifier."""
    history: tuple[Stretch, ...]
    """Of its timelines, the oldest first; the last is its own."""
    end: Lsn
    """Ours: the end of the last complete record. The upstream's: what it has flushed."""

    @property
    def timeline(self) -> int:
        return self.history[-1].timeline


async def compare(settings: Settings, upstream: Peer, http: aiohttp.ClientSession) -> Standing:
    """How the log in our data directory stands to that of `upstream`; our PostgreSQL may run as a standby, or not.

    Each part may take `postgres.start_timeout` seconds, asking for a position `postgres.query_timeout`. Raises
    CompareFailed if the upstream cannot be asked or refuses, ToolFailed and BadWal if our own log cannot be read.
    """
    control, ours = await _our_log(settings)
    theirs = await their_log(settings, upstream)
    standing = judge(ours, theirs)
    if standing.answer is not Comparison.PREFIX:
        return standing
    if control.min_recovery_end > ours.end:
        reason = f"our data need the log up to {control.min_recovery_end}, and it ends here at {ours.end}"
        return Standing(None, reason, theirs.end, theirs.timeline)
    differs = await _difference(settings, upstream, http, ours, theirs, control.redo)
    if differs is None:
        return standing
    answer, reason = differs
    return Standing(answer, reason, theirs.end, theirs.timeline, Parting.BYTES if answer else None)


def judge(ours: Log, theirs: Log) -> Standing:
    """What identifiers, histories and ends say; PREFIX is still to be confirmed by the bytes."""

    def standing(answer: Comparison, reason: str, parting: Parting | None = None) -> Standing:
        return Standing(answer, reason, theirs.end, theirs.timeline, parting)

    if ours.identifier != theirs.identifier:
        return standing(
            Comparison.DIVERGED,
            f"another database: system identifier {ours.identifier} here, {theirs.identifier} there",
            Parting.DATABASE,
        )
    parted = fork(ours.history, theirs.history)
    if ours.end > parted:
        where = f"at {Lsn(int(parted))}, the end of what timelines {ours.timeline} and {theirs.timeline} have in common"
        if theirs.end > parted:
            reason = f"{where}; the log here goes on to {ours.end}, theirs to {theirs.end}"
            return standing(Comparison.DIVERGED, reason, Parting.TIMELINES)
        return standing(
            Comparison.AHEAD, f"the log here ends at {ours.end} on a newer timeline, theirs at {theirs.end}"
        )
    if ours.end > theirs.end:
        return standing(Comparison.AHEAD, f"the log here ends at {ours.end}, theirs at {theirs.end}")
    return standing(Comparison.PREFIX, f"the same up to {ours.end}, the end of the log here")


def fork(ours: tuple[Stretch, ...], theirs: tuple[Stretch, ...]) -> float:
    """The position up to which two histories are the same; infinite if they are one."""
    for one, other in zip(ours, theirs, strict=False):
        if one.timeline != other.timeline:
            return one.begin
        ends = [math.inf if stretch.end is None else stretch.end for stretch in (one, other)]
        if ends[0] != ends[1]:
            return min(ends)
    return math.inf


async def _our_log(settings: Settings) -> tuple[ControlData, Log]:
    control = await controldata.read(settings)
    version = await versions.of_programs(settings)
    end = await wal_end.find(settings, control, version=version, timeout=settings.postgres.start_timeout)
    timelines = wal_end.history(settings.storage.data_dir, end.timeline)
    return control, Log(control.system_identifier, timelines, end.lsn)


async def their_log(settings: Settings, upstream: Peer) -> Log:
    """The upstream's log, by the replication protocol (documentation, "Streaming Replication Protocol")."""
    limit = settings.postgres.query_timeout
    try:
        async with asyncio.timeout(limit):
            connection = await psycopg.AsyncConnection.connect(
                **link.parameters(settings, upstream),
                replication="true",
                application_name="manatee-compare",
                connect_timeout=max(2, math.ceil(limit)),
                autocommit=True,
            )
            try:
                identifier, timeline, flush = await _row(connection, b"IDENTIFY_SYSTEM", 3)
                content = b""
                if int(timeline) > 1:
                    content = (await _row(connection, b"TIMELINE_HISTORY " + timeline, 2))[1]
            finally:
                await connection.close()
    except TimeoutError:
        raise CompareFailed(f"{upstream.label} did not answer within {limit:g} s") from None
    except psycopg.Error as error:
        raise CompareFailed(f"{upstream.label} cannot be asked: {str(error).strip()}") from error
    history = wal_end.parse_history(int(timeline), content.decode(errors="replace"))
    return Log(identifier.decode(), history, Lsn.parse(flush.decode()))


async def _row(connection: psycopg.AsyncConnection[tuple[object, ...]], command: bytes, columns: int) -> list[bytes]:
    """The one row that a replication command answers with, undecoded: its types are not what they are said to be."""
    cursor = await connection.execute(command)
    result = cursor.pgresult
    assert result is not None
    return [result.get_value(0, column) or b"" for column in range(columns)]


async def _difference(
    settings: Settings, upstream: Peer, http: aiohttp.ClientSession, ours: Log, theirs: Log, start: Lsn
) -> tuple[Comparison | None, str] | None:
    """What speaks against our log from `start` on being a prefix of theirs; None if nothing does."""

    async def differs(begin: Lsn, end: Lsn) -> bool:
        here = asyncio.to_thread(digest, settings, ours.timeline, begin, end)
        there = their_digest(settings, upstream, http, theirs.timeline, begin, end)
        mine, its = await asyncio.gather(here, there)
        return mine != its

    low, high = start, ours.end
    try:
        if not await differs(low, high):
            return None
        for _ in range(_ATTEMPTS):
            middle = Lsn((low + high) // 2 // PAGE * PAGE)
            if middle <= low:
                break
            if await differs(low, middle):
                high = middle
            else:
                low = middle
    except NotHeld as error:
        if high == ours.end and low == start:
            return None, f"{upstream.label} does not hold what is to be compared: {error}"
    line = next(one.timeline for one in reversed(ours.history) if one.begin <= low)
    where = f"on timeline {line}, between {low} and {high}"
    return Comparison.DIVERGED, f"the logs differ {where}, although their timelines are the same"


class NotHeld(Exception):
    """The upstream does not hold all of the range."""


def digest(settings: Settings, timeline: int, begin: Lsn, end: Lsn) -> str:
    try:
        return wal.digest(settings.storage.data_dir, timeline, begin, end)
    except wal.WalError as error:
        raise CompareFailed(f"the log here cannot be read from {begin} to {end}: {error}") from error


async def their_digest(
    settings: Settings, upstream: Peer, http: aiohttp.ClientSession, timeline: int, begin: Lsn, end: Lsn
) -> str:
    """The digest of the upstream's bytes, from its backup server."""
    if upstream.backup_url is None:
        raise NotHeld("it has no backup server")
    try:
        headers = bearer(settings.backup)
    except NoToken as error:
        raise CompareFailed(str(error)) from error
    asked = {"timeline": str(timeline), "from": str(begin), "to": str(end)}
    limit = aiohttp.ClientTimeout(total=settings.postgres.start_timeout)
    try:
        url = f"{upstream.backup_url.rstrip('/')}/v2/wal"
        async with http.get(url, params=asked, headers=headers, timeout=limit) as response:
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise CompareFailed(f"the backup server of {upstream.label} cannot be asked: {error!r}") from error
    if response.status == 200 and isinstance(answer, dict) and isinstance(answer.get("digest"), str):
        return str(answer["digest"])
    said = answer.get("error") if isinstance(answer, dict) else None
    if response.status == 404 and said:
        raise NotHeld(said)
    raise CompareFailed(f"the backup server of {upstream.label} answers {response.status}: {said or 'nothing legible'}")

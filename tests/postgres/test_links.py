"""Replication links: a dead one is noticed, and a change of upstream needs no restart."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from sitter.postgres import queries
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from tests.postgres.local import Machines, Node, until


async def receiver(node: Node) -> int | None:
    facts = await queries.facts(node.settings)
    return facts.receiver.pid if facts.receiver else None


async def test_a_half_open_link_is_given_up_within_ten_seconds(machines: Machines) -> None:
    """Lesson: the other side is there, by all that TCP knows, and says nothing any more."""
    primary = machines.initialized()
    await primary.start_primary()
    deaf, mute = await asyncio.gather(machines.standby_of(primary), machines.standby_of(primary))
    sender = (await queries.facts(primary.settings)).downstream(mute.name)
    deaf_receiver, mute_receiver = await receiver(deaf), await receiver(mute)
    assert sender
    assert deaf_receiver
    begun = time.monotonic()
    os.kill(sender.pid, signal.SIGSTOP)
    os.kill(deaf_receiver, signal.SIGSTOP)

    async def standby_noticed() -> bool:
        return await receiver(mute) != mute_receiver

    async def primary_noticed() -> bool:
        row = (await queries.facts(primary.settings)).downstream(deaf.name)
        return row is None

    await asyncio.gather(until(standby_noticed, timeout=11), until(primary_noticed, timeout=11))
    assert time.monotonic() - begun < 11
    os.kill(sender.pid, signal.SIGCONT)
    os.kill(deaf_receiver, signal.SIGCONT)


async def test_another_upstream_is_a_reload(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    sync, last = await asyncio.gather(machines.standby_of(primary), machines.standby_of(primary))
    started = await last.value("select pg_postmaster_start_time()")
    for upstream, former in ((sync, primary), (primary, sync)):
        await last.server.configure(last.follows(upstream))

        async def moved(here: Node = upstream, there: Node = former) -> bool:
            row = (await queries.facts(here.settings)).downstream(last.name)
            gone = (await queries.facts(there.settings)).downstream(last.name) is None
            return gone and row is not None and row.state == "streaming"

        await until(moved)
    assert await last.value("select pg_postmaster_start_time()") == started


async def test_a_change_of_sync_releases_nobody_in_between(machines: Machines) -> None:
    """A commit that waits goes on waiting from one name to the next, and is confirmed by the second."""
    primary = machines.initialized()
    await primary.start_primary()
    first = await machines.standby_of(primary)
    await primary.server.configure(Replication(NOBODY, read_only=False))
    waiting = await primary.connect()
    commit = asyncio.create_task(waiting.execute("create table t ()"))

    async def in_wait() -> bool:
        return bool(await primary.sql("select 1 from pg_stat_activity where wait_event = 'SyncRep'"))

    await until(in_wait)
    await primary.server.configure(Replication("another that is not there", read_only=True))
    await asyncio.sleep(0.2)
    assert not commit.done()
    await primary.server.configure(Replication(first.name, read_only=True))
    async with asyncio.timeout(10):
        await commit
    await waiting.close()
    await primary.server.configure(Replication(ALONE, read_only=False))

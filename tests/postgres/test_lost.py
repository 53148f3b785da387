"""Promise 1: a primary that has lost WAL within one segment is served to, and confirmed, by a standby that has more."""

from __future__ import annotations

import asyncio

import pytest

from manatee.lsn import Lsn
from sitter.postgres import queries
from sitter.postgres.configuration import Replication
from sitter.postgres.gate import caught_up
from sitter.postgres.queries import Downstream
from sitter.postgres.watch import Watch
from tests.postgres.local import Machines, Node, as_postgres, until


async def flushed(node: Node) -> Lsn:
    return (await queries.facts(node.settings)).flush


async def streams(primary: Node, standby: Node) -> Downstream | None:
    row = (await queries.facts(primary.settings)).downstream(standby.name)
    return row if row and (row.state, row.sync_state) == ("streaming", "sync") else None


async def test_a_sync_that_has_what_the_primary_lost_does_not_open_it(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    sync = await machines.standby_of(primary)
    await primary.sql("create table t (i int)")
    await primary.crash()
    before = primary.data_dir.with_name("before")
    as_postgres("cp", "-a", primary.data_dir, before)

    opened = Replication(sync.name, read_only=False)
    await primary.start(opened, standby=False)
    await primary.open()
    await primary.sql("insert into t select generate_series(1, 5000)")
    end = await flushed(sync)
    honest = await until(lambda: streams(primary, sync))
    assert honest
    assert not honest.ahead
    watch = Watch(primary.settings, primary.server)
    await asyncio.wait_for(caught_up(watch, sync.name), 30)

    await primary.crash()
    primary.data_dir.rename(primary.data_dir.with_name("after"))
    before.rename(primary.data_dir)
    await primary.start(opened, standby=False)
    await primary.open()
    assert await flushed(primary) < end
    waiting = asyncio.create_task(caught_up(watch, sync.name))
    row = await until(lambda: streams(primary, sync))
    assert row
    assert row.ahead, "it is served, and says that it has flushed what this primary does not have"
    for _ in range(3):
        await watch.look()
        await asyncio.sleep(0)
    if waiting.done():
        pytest.fail("clients were let in: their commits are acknowledged by a standby that will never have them")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

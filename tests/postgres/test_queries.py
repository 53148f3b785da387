"""Refused, starting and hung are told apart, by a fresh connection with a deadline; facts come from one look."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from manatee.lsn import Lsn
from sitter.postgres import configuration, controldata, queries
from sitter.postgres.configuration import ALONE, Replication
from sitter.postgres.errors import Hung, Unreachable
from sitter.postgres.queries import Condition
from tests.postgres.local import Machines, until


async def test_health_by_a_fresh_connection(machines: Machines) -> None:
    node = machines.initialized()
    assert (await queries.health(node.settings)).condition is Condition.REFUSED
    await node.start_primary()
    health = await queries.health(node.settings)
    assert health.up, health
    assert health.seconds < 1
    await node.postmaster.stop("fast", timeout=10)
    assert (await queries.health(node.settings)).condition is Condition.REFUSED
    with pytest.raises(Unreachable, match="no connection"):
        await queries.facts(node.settings)


async def test_a_hung_postmaster_is_hung_although_an_open_connection_answers(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    old = await node.connect()
    assert node.postmaster.pid
    os.kill(node.postmaster.pid, signal.SIGSTOP)
    begun = time.monotonic()
    health = await queries.health(node.settings, timeout=0.5)
    assert health.condition is Condition.HUNG
    assert time.monotonic() - begun < 1.0
    with pytest.raises(Hung):
        await queries.facts(node.settings, timeout=0.2)
    assert await (await old.execute("select 1")).fetchone() == (1,)
    await old.close()
    os.kill(node.postmaster.pid, signal.SIGCONT)


async def test_a_server_that_lets_nobody_in_yet_is_starting(machines: Machines) -> None:
    """A standby that cannot become consistent answers, and is neither dead nor hung."""
    primary = machines.initialized()
    await primary.start_primary()
    node = machines.empty()
    await asyncio.to_thread(machines.copy, primary, node)
    for segment in (node.data_dir / "pg_wal").glob("0000*"):
        segment.unlink()
    await node.start(Replication(ALONE, read_only=True), standby=True)
    health = await queries.health(node.settings)
    assert health.condition is Condition.STARTING, health


async def test_a_server_that_turns_us_away_is_not_dead(machines: Machines) -> None:
    node = machines.initialized()
    (node.data_dir / "pg_hba.conf").write_text("local all all reject\n")
    await node.start(Replication(ALONE, read_only=False), standby=False)
    await node.open()
    assert (await queries.health(node.settings)).condition is Condition.REJECTED


async def test_facts_of_a_primary_and_its_standby(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    await primary.server.configure(Replication(standby.name, read_only=True))

    async def in_force() -> bool:
        return (await queries.facts(primary.settings)).standby_names == configuration.standby_names(standby.name)

    await until(in_force)
    await primary.sql("begin read write; create table t (); commit")
    here = await queries.facts(primary.settings)
    assert (here.in_recovery, here.timeline, here.read_only, here.receiver, here.replay) == (False, 1, True, None, None)

    async def replayed() -> bool:
        return (await queries.facts(standby.settings)).replay == (await queries.facts(primary.settings)).flush

    await until(replayed)
    here, there = await queries.facts(primary.settings), await queries.facts(standby.settings)
    downstream = here.downstream(standby.name)
    assert downstream
    assert (downstream.state, downstream.sync_state, downstream.flush) == ("streaming", "sync", here.flush)
    assert downstream.client_addr == "127.0.0.1"
    assert here.downstream("another") is None
    assert there.in_recovery
    assert (there.flush, there.replay, there.timeline) == (here.flush, here.flush, 1)
    assert there.last_replayed
    assert not there.replay_paused
    assert there.receiver
    assert there.receiver.sender_host == primary.settings.peer.ip
    assert there.receiver.sender_port == primary.settings.peer.postgres_port
    assert standby.name in there.receiver.conninfo

    await standby.sql("select pg_wal_replay_pause()")
    assert (await queries.facts(standby.settings)).replay_paused


async def test_the_received_position_counts_not_the_replayed_one(machines: Machines) -> None:
    """Lesson: replay used where received was meant. Here replay is paused and the WAL arrives all the same."""
    primary = machines.initialized()
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    await standby.sql("select pg_wal_replay_pause()")
    await primary.sql("create table t as select generate_series(1, 1000)")
    mark = (await queries.facts(primary.settings)).flush

    async def received() -> bool:
        return (await queries.facts(standby.settings)).flush >= mark

    await until(received)
    facts = await queries.facts(standby.settings)
    assert facts.replay is not None
    assert facts.replay < mark
    # After a restart nothing has been received, but what waits on disk is replayed; never a position before it.
    await standby.postmaster.stop("fast", timeout=10)
    control = await controldata.read(standby.settings)
    await standby.start(Replication(ALONE, read_only=True), standby=True)
    await standby.open()

    async def caught_up() -> bool:
        facts = await queries.facts(standby.settings)
        assert facts.flush >= control.redo > Lsn(0)
        return facts.flush >= mark

    await until(caught_up)

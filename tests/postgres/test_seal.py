"""Promise 1 and 2: after a seal nothing more is acknowledged except through the peer that sealed.

Clients write all the time; what they were told is compared with the position that the seal returned, by the WAL itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import psycopg
import pytest
import structlog

from manatee.lsn import Lsn
from sitter.postgres import configuration, queries
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from sitter.postgres.errors import RestartNeeded, SealFailed
from sitter.postgres.promote import promote
from sitter.postgres.seal import seal_primary, seal_standby
from tests.postgres.local import Machines, Node, until
from tests.postgres.writers import Writers

LOG = structlog.get_logger()


async def pair(machines: Machines, base: str = "") -> tuple[Node, Node]:
    """A primary and its sync, confirmed; the sync with some settings of its own."""
    primary = machines.initialized()
    await primary.start_primary()
    sync = machines.empty()
    assert sync.settings.postgres.config_file
    with sync.settings.postgres.config_file.open("a") as lines:
        lines.write(base)
    await asyncio.to_thread(machines.copy, primary, sync)
    await sync.start_standby(primary)
    await primary.server.configure(Replication(sync.name, read_only=False))

    async def confirmed() -> bool:
        row = (await queries.facts(primary.settings)).downstream(sync.name)
        return row is not None and (row.state, row.sync_state) == ("streaming", "sync")

    await until(confirmed)
    return primary, sync


async def seal_checked(writers: Writers, sync: Node) -> Lsn:
    """Seal the sync while the primary is written to, and check that every acknowledged commit is below the seal."""
    position = await seal_standby(sync.settings, sync.server)
    acknowledged = len(writers.acknowledged)
    highest = writers.highest()
    assert highest <= position
    # Nor is anything acknowledged later: the primary lives, and its walsenders could speak to a receiver.
    await asyncio.sleep(0.3)
    assert len(writers.acknowledged) == acknowledged or writers.highest() <= position
    facts = await queries.facts(sync.settings)
    assert facts.receiver is None
    assert facts.replay == position <= facts.flush
    return position


async def rows(node: Node) -> set[int]:
    return {row[0] for row in await node.sql("select xid from written")}


async def waits_for(node: Node, *events: str) -> None:
    async def waiting() -> bool:
        return await node.value("select wait_event from pg_stat_activity where backend_type = 'startup'") in events

    await until(waiting)


async def received_more_than_replayed(node: Node, count: int = 1 << 14) -> None:
    async def behind() -> bool:
        facts = await queries.facts(node.settings)
        return facts.replay is not None and facts.flush - facts.replay > count

    await until(behind)


async def backlog(primary: Node, sync: Node) -> None:
    """Have the sync receive much more than it has replayed: its startup process then knows only of the first part."""
    await primary.sql("create table bulk as select generate_series(1, 200000)")
    await received_more_than_replayed(sync, 8 << 20)


async def test_a_sealed_standby_has_all_that_was_acknowledged(machines: Machines) -> None:
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)


async def test_seal_while_a_query_conflicts_with_replay(machines: Machines) -> None:
    """The receiver streams on and the primary is confirmed, while replay waits for a snapshot to go away."""
    primary, sync = await pair(machines, "max_standby_streaming_delay = -1\n")
    await sync.server.configure(replace(sync.server.replication, max_standby_delay=3600))
    await primary.sql("create table t as select generate_series(1, 1000) i")
    async with Writers(primary) as writers:
        await received(sync, primary)
        reader = await sync.connect()
        await reader.execute("begin isolation level repeatable read")
        await reader.execute("select count(*) from t")
        await primary.sql("delete from t")
        await primary.sql("vacuum t")
        await waits_for(sync, "RecoveryConflictSnapshot")
        await writers.more(100)
        await received_more_than_replayed(sync)
        begun = time.monotonic()
        await seal_checked(writers, sync)
        assert time.monotonic() - begun < 2.5
        assert set(writers.acknowledged) <= await rows(sync)
        await reader.close()


async def test_seal_while_replay_waits_for_a_lock(machines: Machines) -> None:
    """Idle in a transaction: a cancel does nothing to it."""
    primary, sync = await pair(machines)
    await sync.server.configure(replace(sync.server.replication, max_standby_delay=3600))
    await primary.sql("create table t (i int)")
    async with Writers(primary) as writers:
        await received(sync, primary)
        reader = await sync.connect()
        await reader.execute("begin")
        await reader.execute("select * from t")
        await primary.sql("alter table t add j int")
        await waits_for(sync, "relation")
        await writers.more(100)
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)
        with pytest.raises(psycopg.OperationalError):
            await reader.execute("select 1")
        await reader.close()


async def test_seal_while_replay_is_paused(machines: Machines) -> None:
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        await sync.sql("select pg_wal_replay_pause()")
        await backlog(primary, sync)
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)


async def test_seal_while_replay_is_paused_and_the_primary_is_gone(machines: Machines) -> None:
    """Let go, the startup process finds no receiver, and rests before it looks at what else is on disk."""
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        await sync.sql("select pg_wal_replay_pause()")
        await backlog(primary, sync)
        await primary.crash()
        await sync.receives_nothing()
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)


async def test_seal_while_replay_is_delayed(machines: Machines) -> None:
    primary, sync = await pair(machines, "recovery_min_apply_delay = '1h'\n")
    async with Writers(primary) as writers:
        await waits_for(sync, "RecoveryApplyDelay")
        await backlog(primary, sync)
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)


async def half_a_record(primary: Node, sync: Node) -> int:
    """Have the sync receive the first part of a large record; the pid of the walsender, which is stopped."""
    before = (await queries.facts(primary.settings)).flush
    (sender,) = (await queries.facts(primary.settings)).downstreams
    large = await primary.connect()
    large.pgconn.send_query(b"select pg_logical_emit_message(true, '', repeat('x', 200000000))")
    large.pgconn.flush()

    async def midway() -> bool:
        return (await queries.facts(sync.settings)).flush > before + (10 << 20)

    await until(midway)
    os.kill(sender.pid, signal.SIGSTOP)
    large.pgconn.finish()
    assert (await queries.facts(sync.settings)).flush < before + (190 << 20), "too late: it was through already"
    return sender.pid


async def test_seal_with_a_large_record_half_received(machines: Machines) -> None:
    """The received position lies in the middle of a record: the seal is before it, and the rest never comes."""
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        sender = await half_a_record(primary, sync)
        position = await seal_checked(writers, sync)
        sealed = await queries.facts(sync.settings)
        assert position < sealed.flush - (1 << 20)
        os.kill(sender, signal.SIGCONT)
        await asyncio.sleep(0.3)
        assert await queries.facts(sync.settings) == sealed
        assert set(writers.acknowledged) <= await rows(sync)


async def test_seal_right_after_a_restart_with_wal_not_replayed(machines: Machines) -> None:
    """Acknowledged WAL waits on disk, and the received position is null."""
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        await sync.sql("select pg_wal_replay_pause()")
        await backlog(primary, sync)
        await sync.crash()
        await sync.start(Replication(NOBODY, read_only=True, sealed=True), standby=True)
        await sync.open()
        await seal_checked(writers, sync)
        assert set(writers.acknowledged) <= await rows(sync)


async def test_a_seal_outlasts_a_restart(machines: Machines) -> None:
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        position = await seal_checked(writers, sync)
        await sync.crash()
        await sync.postmaster.start(configuration.file(sync.settings), timeout=20)
        await sync.open()
        assert await seal_checked(writers, sync) == position


async def test_seal_and_promotion_while_the_checkpointer_hangs(machines: Machines) -> None:
    """It is the checkpointer that notices changed names; a standby has had one, though nobody's, from its start."""
    primary, sync = await pair(machines)
    checkpointer = await sync.value("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    async with Writers(primary) as writers:
        os.kill(checkpointer, signal.SIGSTOP)
        await seal_checked(writers, sync)
        await promote(sync.settings, LOG)
        assert set(writers.acknowledged) <= await rows(sync)
    connection = await sync.connect()
    await connection.execute("set default_transaction_read_only = off")
    commit = asyncio.create_task(connection.execute("insert into written values (-1)"))

    async def waits() -> bool:
        return bool(await sync.sql("select 1 from pg_stat_activity where wait_event = 'SyncRep'"))

    await until(waits)
    assert not commit.done()
    connection.pgconn.finish()
    commit.cancel()
    await asyncio.gather(commit, return_exceptions=True)
    os.kill(checkpointer, signal.SIGCONT)


async def test_a_seal_that_meets_smaller_settings_asks_for_a_restart(machines: Machines) -> None:
    primary, sync = await pair(machines)
    await primary.sql("create table written (xid bigint)")
    await primary.postmaster.stop("fast", timeout=10)
    assert primary.settings.postgres.config_file
    with primary.settings.postgres.config_file.open("a") as lines:
        lines.write("max_connections = 90\n")
    await primary.start_primary(sync.name)

    async def paused() -> bool:
        return (await queries.facts(sync.settings)).replay_paused

    await until(paused)
    connection = await primary.connect()
    await connection.execute("insert into written values (1)")  # confirmed, although replay stands still
    with pytest.raises(RestartNeeded, match="max_connections is 40 here and was 90"):
        await seal_standby(sync.settings, sync.server)
    await sync.server.stop("immediate")
    await sync.start(Replication(NOBODY, read_only=True, sealed=True), standby=True)
    await sync.open()
    position = await seal_standby(sync.settings, sync.server)
    assert await rows(sync) == {1}
    assert position <= (await queries.facts(primary.settings)).flush
    await connection.close()


async def test_replay_that_does_not_move_fails_the_seal(machines: Machines) -> None:
    _, sync = await pair(machines)
    quick = sync.settings.postgres.model_copy(update={"query_timeout": 0.7})
    settings = sync.settings.model_copy(update={"postgres": quick})
    startup = await sync.value("select pid from pg_stat_activity where backend_type = 'startup'")
    os.kill(startup, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(SealFailed, match="replay: stands still at"):
        await seal_standby(settings, sync.server)
    assert time.monotonic() - begun < 4
    os.kill(startup, signal.SIGCONT)
    await seal_standby(sync.settings, sync.server)


async def test_a_sealed_primary_acknowledges_nothing_more(machines: Machines) -> None:
    """The old sync may still stream, and comes back: it confirms, and counts for nothing."""
    primary, sync = await pair(machines)
    async with Writers(primary) as writers:
        position = await seal_primary(primary.settings, primary.server, sync.settings.identity)
        acknowledged = len(writers.acknowledged)

        async def back() -> bool:
            row = (await queries.facts(primary.settings)).downstream(sync.name)
            return row is not None and row.state == "streaming" and (row.flush or 0) > position

        await primary.sql("select pg_switch_wal()")
        await until(back)
        assert writers.highest() <= position
        assert len(writers.acknowledged) - acknowledged <= 3, "those that were under way"
        # Unsealed, those that waited are released, the probe among them.
        await primary.server.configure(Replication(sync.name, read_only=False))
        await writers.more(50)

        async def hung_up() -> bool:
            return not await primary.sql("select 1 from pg_stat_activity where application_name = 'manatee-seal'")

        await until(hung_up)
        # And once more, with the sync named anew.
        position = await seal_primary(primary.settings, primary.server, sync.settings.identity)
        await asyncio.sleep(0.3)
        assert writers.highest() <= position


async def test_sealing_a_primary_that_wrote_alone(machines: Machines) -> None:
    """From no name to a name counts when the checkpointer has noticed, not when SHOW says so."""
    primary = machines.initialized()
    await primary.start_primary(ALONE)
    async with Writers(primary) as writers:
        position = await seal_primary(primary.settings, primary.server, None)
        await asyncio.sleep(0.3)
        assert writers.highest() <= position


async def test_a_name_that_does_not_count_yet_fails_the_seal(machines: Machines) -> None:
    """SHOW has it, and commits are acknowledged all the same, until the checkpointer comes round."""
    primary = machines.initialized()
    await primary.start_primary(ALONE)
    quick = primary.settings.postgres.model_copy(update={"query_timeout": 0.7})
    settings = primary.settings.model_copy(update={"postgres": quick})
    checkpointer = await primary.value("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    async with Writers(primary) as writers:
        os.kill(checkpointer, signal.SIGSTOP)
        with pytest.raises(SealFailed) as failed:
            await seal_primary(settings, primary.server, None)
        assert failed.value.step == "probe"
        assert await primary.value("show synchronous_standby_names") == configuration.standby_names(NOBODY)
        await writers.more()
        os.kill(checkpointer, signal.SIGCONT)
        position = await seal_primary(primary.settings, primary.server, None)
        assert writers.highest() <= position


async def test_a_walsender_that_does_not_end_fails_the_seal(machines: Machines) -> None:
    primary, sync = await pair(machines)
    quick = primary.settings.postgres.model_copy(update={"query_timeout": 0.7})
    settings = primary.settings.model_copy(update={"postgres": quick})
    (sender,) = (await queries.facts(primary.settings)).downstreams
    os.kill(sender.pid, signal.SIGSTOP)
    with pytest.raises(SealFailed) as failed:
        await seal_primary(settings, primary.server, sync.settings.identity)
    assert failed.value.step == "walsender"
    os.kill(sender.pid, signal.SIGCONT)
    assert primary.server.replication.commits_wait_for == NOBODY
    await seal_primary(primary.settings, primary.server, sync.settings.identity)
    probes = await primary.sql("select pid from pg_stat_activity where application_name = 'manatee-seal'")
    assert len(probes) == 1, "failed seals leave no waiting backends behind"


@pytest.mark.parametrize("half", [False, True], ids=["idle", "half_a_record"])
async def test_taking_over_is_quick_and_restarts_nothing(machines: Machines, half: bool) -> None:
    """Seal, promote, first commit confirmed by the new sync, which was streaming from the old one all along."""
    primary, sync = await pair(machines)
    downstream = await machines.standby_of(sync)
    started = await downstream.value("select pg_postmaster_start_time()")
    async with Writers(primary) as writers:
        await writers.more(100)
        if half:
            await half_a_record(primary, sync)
        await primary.crash()
        times = [time.monotonic()]
        position = await seal_standby(sync.settings, sync.server)
        times.append(time.monotonic())

        async def flushed() -> bool:
            row = (await queries.facts(sync.settings)).downstream(downstream.name)
            return row is not None and row.state == "streaming" and (row.flush or 0) >= position

        await until(flushed)
        times.append(time.monotonic())
        await sync.server.configure(Replication(downstream.name, read_only=False))
        times.append(time.monotonic())
        await promote(sync.settings, sync.server._log)
        times.append(time.monotonic())
        await sync.sql("create table first ()")
        times.append(time.monotonic())
        steps = ("seal", "candidate", "configure", "promote", "first commit")
        taken = {name: round((b - a) * 1000) for name, a, b in zip(steps, times[:-1], times[1:], strict=True)}
        print("milliseconds:", machines.version, taken, "in all", round((times[-1] - times[0]) * 1000))  # noqa: T201
        assert set(writers.acknowledged) <= await rows(sync)
        assert await sync.value("select timeline_id from pg_control_checkpoint()") in (1, 2)
        assert (await queries.facts(sync.settings)).timeline == 2
        assert times[-1] - times[0] < 2
    assert await downstream.value("select pg_postmaster_start_time()") == started
    await promote(sync.settings, sync.server._log)  # a primary already


async def received(node: Node, upstream: Node) -> None:
    mark = (await queries.facts(upstream.settings)).flush

    async def replayed() -> bool:
        facts = await queries.facts(node.settings)
        return facts.replay is not None and facts.replay >= mark

    await until(replayed)

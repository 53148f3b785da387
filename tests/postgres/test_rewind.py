"""Promise 3, when data that have diverged are rewound: they come out as the primary's, or are not started at all."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from manatee.cluster import Comparison
from sitter.postgres import controldata, initdb, queries, rewind, wal_end
from sitter.postgres.configuration import NOBODY, Replication
from sitter.postgres.errors import PostgresError
from sitter.postgres.rewind import Plan, Unrewindable
from sitter.view import Parting
from tests.postgres.local import HBA, Machines, Node
from tests.postgres.test_compare import backup_servers, compared, replayed, take_over, work

LOG = structlog.get_logger()


async def parted(machines: Machines) -> tuple[Node, Node]:
    """An old primary that crashed with commits nobody else has, and the new one, which has others."""
    old = machines.initialized()
    await old.start_primary()
    new = await machines.standby_of(old)
    await replayed(new, await work(old))
    await new.server.configure(Replication(NOBODY, read_only=True))
    await new.receives_nothing()
    await old.sql("insert into t select -1 from generate_series(1, 2000)")
    await old.sql("create table only_here as select 1")
    await old.crash()
    await take_over(new)
    await work(new, 1000)
    return old, new


async def rows(node: Node) -> list[tuple[object, ...]]:
    return await node.sql("select i, count(*) from t group by i order by i")


async def test_diverged_data_are_rewound_and_follow(machines: Machines) -> None:
    old, new = await parted(machines)
    hba = (old.data_dir / "pg_hba.conf").read_text() + "# ours\n"
    (old.data_dir / "pg_hba.conf").write_text(hba)
    async with backup_servers(new):
        found = await compared(old, new)
        assert (found.answer, found.parting) == (Comparison.DIVERGED, Parting.TIMELINES), found
        seen: list[int] = []
        plan = await rewind.rewind(old.settings, new.settings.identity, LOG, lambda done, total: seen.append(done))
        assert plan.checkpoint < plan.parted
        assert f"at {plan.parted}" in found.reason
        assert not rewind.torn(old.settings)
        assert (await compared(old, new)).answer is Comparison.PREFIX
    assert (old.data_dir / "pg_hba.conf").read_text() == hba
    mark = await work(new)
    await old.start_standby(new)
    await replayed(old, mark)
    assert await rows(old) == await rows(new)
    assert await old.value("select to_regclass('only_here') is null")
    assert seen


async def test_a_promotion_to_the_same_timeline_is_not_believed(machines: Machines) -> None:
    """pg_rewind sees nothing to do; the logs' bytes differ, so nothing is changed and nothing is called rewound."""
    primary = machines.initialized()
    await primary.start_primary()
    one = await machines.standby_of(primary)
    other = await machines.standby_of(primary)
    third = await machines.standby_of(primary)
    mark = await work(primary)
    await primary.postmaster.stop("fast", timeout=10)
    end = await wal_end.find(primary.settings, await controldata.read(primary.settings), version=primary.version)
    for node in (one, other):
        await replayed(node, max(mark, end.lsn))
        await take_over(node)
    await work(other, 2000)
    await one.sql("checkpoint")
    await one.sql("insert into t values (-1)")
    await one.crash()
    async with backup_servers(other):
        found = await compared(one, other)
        assert (found.answer, found.parting) == (Comparison.DIVERGED, Parting.BYTES)
        with pytest.raises(Unrewindable, match="nothing to do"):
            await rewind.rewind(one.settings, other.settings.identity, LOG)
        assert not rewind.torn(one.settings)
        # A later promotion shows pg_rewind a fork, and a wrong one: what parted before it would not be undone.
        await third.server.configure(third.follows(other))
        await replayed(third, (await queries.facts(other.settings)).flush)
        await other.postmaster.stop("fast", timeout=10)
        await take_over(third)
        await work(third)
    await one.start_primary()
    await work(one, 20_000)
    await one.crash()
    async with backup_servers(third):
        found = await compared(one, third)
        assert (found.answer, found.parting) == (Comparison.DIVERGED, Parting.TIMELINES), found
        # It stumbles there, as it happens, since no record of ours ends where it would turn back to.
        with pytest.raises(Unrewindable, match="previous WAL record|differ between"):
            await rewind.rewind(one.settings, third.settings.identity, LOG)
        fork = wal_end.history(third.data_dir, 3)[-1].begin
        begun = wal_end.history(third.data_dir, 3)[-2].begin
        with pytest.raises(Unrewindable, match="the logs differ between"):
            await rewind._confirm(one.settings, third.settings.identity, Plan(fork, begun))
    assert not rewind.torn(one.settings)


async def test_a_rewind_that_is_cut_short_leaves_its_mark(machines: Machines) -> None:
    old, new = await parted(machines)
    old.settings.backup.token_file.write_text("secret\n")
    async with backup_servers(new):
        task = asyncio.create_task(rewind.rewind(old.settings, new.settings.identity, LOG))
        while not rewind.torn(old.settings):
            await asyncio.sleep(0.001)
            assert not task.done(), await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert rewind.torn(old.settings)
        with pytest.raises(Unrewindable, match="cut short"):
            await rewind.rewind(old.settings, new.settings.identity, LOG)
    rewind.forget(old.settings)
    assert not rewind.torn(old.settings)


async def test_a_source_that_is_away_changes_nothing(machines: Machines) -> None:
    old, new = await parted(machines)
    await new.crash()
    before = await controldata.read(old.settings)
    with pytest.raises(PostgresError, match="cannot be asked") as caught:
        await rewind.rewind(old.settings, new.settings.identity, LOG)
    assert not isinstance(caught.value, Unrewindable)
    assert not rewind.torn(old.settings)
    assert (await controldata.read(old.settings)).timeline == before.timeline


async def test_another_database_is_never_a_source(machines: Machines) -> None:
    old, _ = await parted(machines)
    stranger = machines.empty()
    initdb.adopt(stranger.settings, await initdb.initialize(stranger.settings, LOG, timeout=60))
    (stranger.data_dir / "pg_hba.conf").write_text(HBA)
    await stranger.start_primary()
    with pytest.raises(Unrewindable, match="different systems"):
        await rewind.rewind(old.settings, stranger.settings.identity, LOG)
    assert not rewind.torn(old.settings)

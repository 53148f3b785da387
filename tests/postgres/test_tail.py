"""A standby that holds half a record of a dead primary can follow the next one, which never wrote the other half."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manatee.lsn import Lsn
from sitter.postgres import tail
from sitter.postgres.configuration import ALONE, Replication
from sitter.postgres.errors import BadWal
from tests.postgres.local import Machines, Node, until

SEGMENT = 16 << 20
LONG = 1 << 20


async def test_half_a_record_at_the_end_of_a_segment_keeps_nobody_from_following(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    heir, other = await machines.standby_of(primary), await machines.standby_of(primary)
    await write_up_to_the_end_of_a_segment(primary)
    for standby in (heir, other):
        await holds(standby, Lsn.parse(await primary.value("select pg_current_wal_flush_lsn()::text")))
    # The heir receives no more of it; the other receives the record, and is stopped before it can replay it.
    await heir.server.configure(replace(heir.server.replication, upstream=None))
    await other.sql("select pg_wal_replay_pause()")
    begin = Lsn.parse(await primary.value("select pg_current_wal_flush_lsn()::text"))
    await primary.sql(f"select pg_logical_emit_message(true, 'x', repeat('x', {LONG}))")
    end = Lsn.parse(await primary.value("select pg_current_wal_flush_lsn()::text"))
    assert begin // SEGMENT + 1 == end // SEGMENT
    await received(other, end)
    await primary.crash()
    await other.crash()
    for path in (other.data_dir / "pg_wal").glob(f"0000000100000000{end // SEGMENT:08X}"):
        path.unlink()
    await heir.sql("select pg_promote()")
    await heir.server.configure(Replication(ALONE, read_only=False))

    await other.start(other.follows(heir), standby=True)
    await other.open()
    await until(lambda: cannot_be_fed(other))
    replayed = Lsn.parse(await other.value("select pg_last_wal_replay_lsn()::text"))
    assert await tail.cut(other.settings, replayed=replayed, only_look=True)
    await other.crash()
    with pytest.raises(BadWal, match="is left alone"):
        await tail.cut(other.settings, replayed=end)
    assert await tail.cut(other.settings, replayed=replayed), "nothing was taken by the attempt before"
    assert not await tail.cut(other.settings, replayed=replayed), "once is enough"
    await other.start(other.follows(heir), standby=True)
    await other.open()
    await heir.sql("create table after_it (n int)")
    await until(lambda: has(other, "after_it"))
    assert not await cannot_be_fed(other)


async def write_up_to_the_end_of_a_segment(primary: Node) -> None:
    """So that less than a long record fits into it."""
    await primary.sql("checkpoint")
    while True:
        now = Lsn.parse(await primary.value("select pg_current_wal_insert_lsn()::text"))
        if SEGMENT - now % SEGMENT < LONG // 2:
            return
        await primary.sql(f"select pg_logical_emit_message(true, 'x', repeat('x', {LONG // 4}))")


async def holds(standby: Node, position: Lsn) -> None:
    async def replayed() -> bool:
        return Lsn.parse(await standby.value("select pg_last_wal_replay_lsn()::text")) >= position

    await until(replayed)


async def received(standby: Node, position: Lsn) -> None:
    async def flushed() -> bool:
        return Lsn.parse(await standby.value("select pg_last_wal_receive_lsn()::text")) >= position

    await until(flushed)


async def cannot_be_fed(node: Node) -> bool:
    """By what the sitter goes by."""
    return node.server.said(*tail.SIGNS, since=tail.FED)


async def has(node: Node, table: str) -> bool:
    return bool(await node.sql(f"select 1 from pg_class where relname = '{table}'"))

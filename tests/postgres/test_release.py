"""A commit that waits for nobody is released as soon as the sync is named: not when that happens to speak next."""

from __future__ import annotations

import asyncio

from sitter.postgres.release import release
from tests.postgres.local import Machines, Node, until


async def test_what_waited_for_nobody_is_released_by_the_sync(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    sync = await machines.standby_of(primary)
    await primary.sql("create table waiting (id int)")
    # From now on the sync speaks only when it has flushed something, and is asked for nothing.
    await tell(sync, "wal_receiver_status_interval", "1h")
    await tell(sync, "wal_receiver_timeout", "0")
    await tell(primary, "wal_sender_timeout", "0")
    await tell(primary, "synchronous_standby_names", '"nobody at all"')
    commit = asyncio.create_task(primary.sql("insert into waiting values (1)"))

    async def held() -> bool:
        return bool(await primary.value("select count(*) from pg_stat_activity where wait_event = 'SyncRep'"))

    async def flushed() -> bool:
        done = "select count(*) from pg_stat_replication where flush_lsn >= pg_current_wal_flush_lsn()"
        return bool(await primary.value(done))

    await until(held)
    await until(flushed)
    await tell(primary, "synchronous_standby_names", f'"{sync.name}"')
    await release(primary.settings, sync.name)
    await asyncio.wait_for(commit, timeout=60)


async def tell(node: Node, name: str, value: str) -> None:
    """By the file that wins over the sitter's; returns when new connections see it."""
    with (node.data_dir / "postgresql.auto.conf").open("a") as lines:
        lines.write(f"{name} = '{value}'\n")
    await node.sql("select pg_reload_conf()")

    async def in_force() -> bool:
        return bool(await node.value(f"show {name}") == value)

    await until(in_force)

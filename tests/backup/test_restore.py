"""Restores over the real backup server: complete and startable, or nothing at all."""

from __future__ import annotations

import stat
from typing import Any

import structlog

from demo.postgresql import Installation
from manatee.storage import open_storage
from sitter.bootstrap import Progress, Restore, Restored
from tests.backup.sandbox import Peer, Sandbox, until


async def restore(peer: Peer, *sources: Peer, **options: Any) -> tuple[Restored, list[Progress]]:
    seen: list[Progress] = []

    async def before_adopt() -> None:
        pass

    options = {
        "major_version": str(peer.postgresql.major),
        "system_identifier": None,
        "before_adopt": before_adopt,
        "attempts": 2,
        **options,
    }
    running = Restore(peer.settings, open_storage(peer.settings), structlog.get_logger(), seen.append)
    return await running.run([source.settings.identity for source in sources], **options), seen


async def test_a_restored_peer_streams_from_its_upstream(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize().serve()
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    sync = sandbox.peer(postgresql)
    restored, seen = await restore(sync, primary)
    assert restored.identity.major_version == str(postgresql.major)
    assert sync.names == {"data"}
    assert stat.S_IMODE(sync.data.stat().st_mode) == 0o700
    assert seen[-1].state == "done"
    assert seen[-1].bytes_done == restored.bytes > 0
    sync.follow(primary).serve()
    # The next one takes it from the standby, and follows that.
    primary.sql("INSERT INTO t SELECT generate_series(1001, 2000)")
    until(lambda: sync.received(primary.flushed()))
    last = sandbox.peer(postgresql)
    await restore(last, sync, system_identifier=restored.identity.system_identifier)
    last.follow(sync)
    primary.sql("INSERT INTO t SELECT generate_series(2001, 3000)")
    until(lambda: last.received(primary.flushed()))
    assert last.sql("SELECT count(*) FROM t") == 3000
    assert last.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == 1

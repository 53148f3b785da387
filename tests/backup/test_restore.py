"""Restores over the real backup server: complete and startable, or nothing at all."""

from __future__ import annotations

import asyncio
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import pytest

from demo.postgresql import Installation
from manatee.storage import open_storage
from manatee.storage.localserver import wal_kept
from sitter.bootstrap import RestoreFailed
from tests.backup.attempt import Attempt
from tests.backup.proxy import Fault, between
from tests.backup.sandbox import TOKEN, Peer, Sandbox, eventually, until

REQUESTER = """
import asyncio, sys, structlog
from manatee.cluster import Peer
from manatee.config import load
from manatee.storage import open_storage
from sitter.bootstrap import Restore

async def nothing(): pass

settings = load(sys.argv[1])
restore = Restore(settings, open_storage(settings), structlog.get_logger())
wanted = {"major_version": sys.argv[3], "system_identifier": None}
asyncio.run(restore.run([Peer.parse(sys.argv[2])], **wanted, before_adopt=nothing))
"""


@pytest.fixture
def rebuilt(sandbox: Sandbox, any_postgresql: Installation) -> Peer:
    """A peer with a database of its own, which is to be replaced."""
    peer = sandbox.peer(any_postgresql, idle_timeout=2.0)
    sandbox.initialize(peer)
    (peer.data / "old").touch()
    return peer


def assert_old_data_live(peer: Peer) -> None:
    """As they were, with nothing beside them."""
    assert peer.names == {"data"}
    assert (peer.data / "old").exists()
    assert (peer.data / "global" / "pg_control").exists()


async def test_a_restored_peer_streams_from_its_upstream(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize().serve()
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    sync = sandbox.peer(postgresql)
    attempt = Attempt(sync)
    restored = await attempt.run(primary)
    assert restored.identity.major_version == str(postgresql.major)
    assert sync.names == {"data"}
    assert stat.S_IMODE(sync.data.stat().st_mode) == 0o700
    done = attempt.seen[-1]
    assert (done.state, done.attempt, done.source) == ("done", 1, primary.settings.identity.backup_url)
    assert done.bytes_done == restored.bytes > 0
    assert done.bytes_total == done.bytes_done
    assert 0.9 < done.bytes_done / attempt.estimate <= 1.0
    sync.follow(primary).serve()
    # The next one takes it from the standby, and follows that.
    primary.sql("INSERT INTO t SELECT generate_series(1001, 2000)")
    until(lambda: sync.received(primary.flushed()))
    last = sandbox.peer(postgresql)
    await Attempt(last).run(sync, system_identifier=restored.identity.system_identifier)
    last.follow(sync)
    primary.sql("INSERT INTO t SELECT generate_series(2001, 3000)")
    until(lambda: last.received(primary.flushed()))
    assert last.sql("SELECT count(*) FROM t") == 3000
    assert last.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == 1


async def test_the_old_data_are_live_until_the_new_are_complete_and_kept_after(standing: Peer, rebuilt: Peer) -> None:
    (rebuilt.root / "db" / "data.restoring-dead").mkdir()
    live_before_adopt = []

    async def before_adopt() -> None:
        live_before_adopt.append((rebuilt.data / "PG_VERSION").exists() and not rebuilt.names - {"data", *beside()})

    def beside() -> set[str]:
        return {name for name in rebuilt.names if name.startswith("data.restoring-") and not name.endswith("dead")}

    restored = await Attempt(rebuilt).run(standing, before_adopt=before_adopt, prefix="rebuild")
    assert live_before_adopt == [True]
    assert restored.isolated is not None
    assert restored.isolated.parent == rebuilt.root / "db" / "isolated"
    assert restored.isolated.name.startswith("rebuild-")
    assert rebuilt.names == {"data", "isolated"}
    rebuilt.start()
    assert rebuilt.sql("SELECT count(*) FROM t") == 10000
    rebuilt.stop()
    # The old ones can be had back by hand, until they are dropped.
    storage = open_storage(rebuilt.settings)
    assert await storage.isolate("by-hand") is not None
    restored.isolated.rename(rebuilt.data)
    assert (rebuilt.data / "old").exists()
    rebuilt.start()
    rebuilt.stop()
    await storage.isolate("again")
    (rebuilt.root / "db" / "isolated" / "of the operator").mkdir()
    assert (await storage.drop_isolated(1)).count == 1
    assert {path.name.split("-")[0] for path in (rebuilt.root / "db" / "isolated").iterdir()} == {
        "again",
        "of the operator",
    }


async def test_a_before_adopt_that_fails_keeps_the_old_data(standing: Peer, rebuilt: Peer) -> None:
    async def before_adopt() -> None:
        raise RuntimeError("the memory could not be erased")

    with pytest.raises(RuntimeError, match="memory"):
        await Attempt(rebuilt).run(standing, before_adopt=before_adopt)
    assert_old_data_live(rebuilt)


@pytest.mark.parametrize(
    ("fault", "said"), [("cut", "broke off"), ("garble", "damaged"), ("hold", "no byte came for 2 s")]
)
async def test_a_stream_that_does_not_come_whole_is_no_database(
    standing: Peer, rebuilt: Peer, fault: Fault, said: str
) -> None:
    attempt = Attempt(rebuilt)
    async with between(standing, fault) as proxy:
        with pytest.raises(RestoreFailed, match=said):
            await attempt.run(proxy.identity)
        assert proxy.streams == 2
        assert attempt.seen[-1].state == "failed"
        assert_old_data_live(rebuilt)
        await eventually(lambda: standing.streams() == 0 and not standing.senders())
        proxy.fault = "none"
        await Attempt(rebuilt).run(proxy.identity)


async def test_a_sender_that_is_killed_leaves_the_old_data_and_no_process(primary: Peer, rebuilt: Peer) -> None:
    attempt = Attempt(rebuilt)
    async with between(primary, "hold") as proxy:
        running = asyncio.create_task(attempt.run(proxy.identity, attempts=100))
        await proxy.held.wait()
        assert len(primary.senders()) == 1
        assert primary.server is not None
        primary.server.kill()
        primary.server.wait()
        proxy.release.set()
        await eventually(lambda: attempt.restore.progress.state == "waiting")
        await eventually(lambda: not primary.senders())
        assert rebuilt.names == {"data"}
        (primary.root / "server.log").unlink()
        proxy.fault = "none"
        primary.serve()
        restored = await running
    assert attempt.restore.progress.attempt >= 2
    assert "nobody says that it was complete" in attempt.errors[0]
    assert restored.isolated is not None


async def test_a_requester_that_is_killed_leaves_the_old_data_and_no_process(standing: Peer, rebuilt: Peer) -> None:
    async with between(standing, "hold") as proxy:
        arguments = [rebuilt.root / "manatee.toml", proxy.identity.content().decode(), rebuilt.postgresql.major]
        requester = subprocess.Popen([sys.executable, "-c", REQUESTER, *map(str, arguments)])
        try:
            await asyncio.wait_for(proxy.held.wait(), 20)
        finally:
            requester.kill()
            requester.wait()
        await eventually(lambda: standing.streams() == 0 and not standing.senders())
    left = rebuilt.names - {"data"}
    assert len(left) == 1
    assert left.pop().startswith("data.restoring-")
    assert await open_storage(rebuilt.settings).clear_leftovers() == 1
    assert_old_data_live(rebuilt)
    rebuilt.start()


async def test_a_restore_can_be_cancelled(standing: Peer, rebuilt: Peer) -> None:
    async with between(standing, "hold") as proxy:
        running = asyncio.create_task(Attempt(rebuilt).run(proxy.identity))
        await proxy.held.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert_old_data_live(rebuilt)
        await eventually(lambda: standing.streams() == 0 and not standing.senders())


async def test_a_cancellation_at_any_moment_leaves_the_old_data_or_the_new(standing: Peer, sandbox: Sandbox) -> None:
    for moment in range(5):
        peer = sandbox.peer(standing.postgresql)
        old = peer.data / "global" / "pg_control"
        old.parent.mkdir(parents=True)
        old.write_text("old")
        (peer.data / "PG_VERSION").write_text("old")
        reached = asyncio.Event()

        async def before_adopt(reached: asyncio.Event = reached) -> None:
            reached.set()

        running = asyncio.create_task(Attempt(peer).run(standing, before_adopt=before_adopt))
        await reached.wait()
        await asyncio.sleep(moment * 0.001)
        running.cancel()
        await asyncio.wait([running])
        live = (peer.data / "PG_VERSION").read_text()
        assert peer.names == ({"data"} if live == "old" else {"data", "isolated"})


async def test_the_nearest_source_is_tried_first_and_the_next_one_when_it_fails(
    sandbox: Sandbox, standing: Peer
) -> None:
    down, peer = sandbox.peer(standing.postgresql), sandbox.peer(standing.postgresql)
    attempt = Attempt(peer)
    restored = await attempt.run(down, standing)
    assert restored.source == standing.settings.identity
    assert "cannot be reached" in attempt.errors[0]
    assert [progress.source for progress in attempt.seen if progress.state == "waiting"] == [
        down.settings.identity.backup_url
    ]


async def test_refusals_are_said_and_bounded(sandbox: Sandbox, primary: Peer) -> None:
    peer = sandbox.peer(primary.postgresql)
    with pytest.raises(RestoreFailed, match="refused: the source holds the database"):
        await Attempt(peer).run(primary, system_identifier="42")
    with pytest.raises(RestoreFailed, match=r"refused: the source runs PostgreSQL \d+, the programs here are 12"):
        await Attempt(peer).run(primary, major_version="12")
    attempt = Attempt(peer)
    (peer.root / "token").write_text("another")
    with pytest.raises(RestoreFailed, match="does not take the token"):
        await attempt.run(primary, attempts=3)
    assert attempt.restore.progress.attempt == 3
    (peer.root / "token").write_text(TOKEN)
    primary.stop()
    with pytest.raises(RestoreFailed, match=r"refuses \(503\): PostgreSQL does not accept connections here"):
        await Attempt(peer).run(primary)
    assert peer.names == set()


async def test_who_finds_all_streams_taken_waits_its_turn(sandbox: Sandbox, any_postgresql: Installation) -> None:
    primary = sandbox.peer(any_postgresql, max_streams=1).initialize().serve()
    first, second = (Attempt(sandbox.peer(any_postgresql)) for _ in range(2))
    async with between(primary, "hold", at=1 << 20) as proxy:
        one = asyncio.create_task(first.run(proxy.identity))
        await proxy.held.wait()
        two = asyncio.create_task(second.run(primary, attempts=1))
        await eventually(lambda: second.restore.progress.state == "waiting")
        assert "is busy: all streams are taken" in str(second.restore.progress.error)
        proxy.release.set()
        await one
        await two
    assert second.restore.progress.state == "done"


async def test_a_checkpoint_that_takes_long_is_no_stall(standing: Peer, rebuilt: Peer) -> None:
    attempt = Attempt(rebuilt)
    with standing.checkpointer_stopped():
        running = asyncio.create_task(attempt.run(standing, attempts=1))
        await asyncio.sleep(1.5 * rebuilt.settings.backup.idle_timeout)
        assert not running.done()
        assert attempt.restore.progress.bytes_done == 0
    await running


async def test_the_log_that_a_long_transfer_needs_is_kept_for_it(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    primary = sandbox.peer(any_postgresql, idle_timeout=60.0)
    primary.initialize(wal_keep_size=0, max_wal_size="32MB", min_wal_size="32MB").serve()
    peer = sandbox.peer(any_postgresql, idle_timeout=60.0)
    async with between(primary, "hold", at=1 << 20) as proxy:
        running = asyncio.create_task(Attempt(peer).run(proxy.identity, attempts=1))
        await proxy.held.wait()
        for _ in range(3):
            primary.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 33554432))")
            primary.sql("CHECKPOINT")
        proxy.release.set()
        await running
    peer.follow(primary)
    until(lambda: peer.received(primary.flushed()))


async def test_the_log_is_kept_for_a_snapshot_while_that_is_sent(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    kept: LiteralString = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND restart_lsn IS NOT NULL"
    primary = sandbox.peer(any_postgresql).initialize().serve()
    async with wal_kept(primary.settings):
        assert primary.sql(kept) == 1
    until(lambda: primary.sql(kept) == 0)


async def test_without_a_free_replication_slot_a_snapshot_is_sent_all_the_same(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    primary = sandbox.peer(any_postgresql).initialize(max_replication_slots=0).serve()
    await Attempt(sandbox.peer(any_postgresql)).run(primary)
    assert "no replication slot for the backup" in primary.server_log()


async def test_a_disk_that_is_too_small_is_found_out_before_and_one_that_fills_up_on_the_way(
    needs_root: None, standing: Peer, rebuilt: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(rebuilt.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(RestoreFailed, match=r"needs about \d+ MiB and .* has 1 MiB free"):
        await Attempt(rebuilt).run(standing)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_old_data_live(rebuilt)
    with tmpfs(rebuilt.root / "db", megabytes=20):
        with pytest.raises(RestoreFailed, match="no space left"):
            await Attempt(rebuilt).run(standing)
        assert rebuilt.names == set()


@contextmanager
def tmpfs(path: Path, megabytes: int) -> Iterator[None]:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)

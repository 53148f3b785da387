"""What dies in part comes back in place; operators move peers; load balancers and Prometheus are told."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import psycopg
import pytest

from demo.shard import LocalPeer, LocalShard
from tests.shard.conftest import (
    SESSION_TIMEOUT,
    acknowledges,
    adm,
    ask,
    complete,
    generation_of,
    primary_of,
    shard_of,
    sync_of,
    writing,
)


@pytest.mark.slow
async def test_a_dead_postmaster_is_restarted_in_place() -> None:
    """With time enough for it: recovery syncs every file first, which can take long on a busy disk."""
    patient = {"postgres": {"crash_restart_timeout": 60}}
    async with shard_of(3, overrides=patient) as shard, writing(shard) as writer:
        before = await complete(shard)
        os.kill(_postmaster(primary_of(shard, before)), signal.SIGKILL)
        await acknowledges(writer)
        after = await complete(shard)
        assert generation_of(after) == generation_of(before)
        _, metrics = await ask(primary_of(shard, after), "/metrics")
        assert "manatee_postgres_restarts_total 1.0" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("role", ["primary", "sync", "async"])
async def test_a_killed_sitter_that_comes_back_in_time_changes_nothing(role: str) -> None:
    """SIGKILL of the sitter takes its PostgreSQL along; it is started again below the session timeout. Nobody may have
    taken it for dead before."""
    patient = {"sitter": {"evict_dead": False}}
    async with shard_of(3, overrides=patient) as shard, writing(shard) as writer:
        before = await complete(shard)
        assert before.state is not None
        peer = shard.peer(dict(zip(("primary", "sync", "async"), before.state.assigned, strict=True))[role].id)
        postmaster = _postmaster(peer)
        sitter = shard.supervisor.status(peer.programs[0]).pid
        assert sitter is not None
        os.kill(sitter, signal.SIGKILL)
        await _gone(postmaster)
        await acknowledges(writer)
        after = await complete(shard)
        assert after.state is not None
        assert [each.id for each in after.state.assigned] == [each.id for each in before.state.assigned]
        assert generation_of(after) == generation_of(before)


@pytest.mark.slow
async def test_promoting_the_async_and_the_sync() -> None:
    """An operator moves the async up to sync, then that to primary: nothing is lost, and nobody needs a rebuild."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        assert before.state is not None
        old_primary, old_sync, moved = before.state.assigned
        await _promote(shard, "-n", moved.zone_id, "-r", "async", "-i", "0")
        after = await complete(shard)
        assert after.state is not None
        assert [peer.id for peer in after.state.assigned] == [old_primary.id, moved.id, old_sync.id]
        await acknowledges(writer)
        await _promote(shard, "-n", moved.zone_id, "-r", "sync")
        last = await complete(shard)
        assert last.state is not None
        assert [peer.id for peer in last.state.assigned] == [moved.id, old_sync.id, old_primary.id]
        await acknowledges(writer)


@pytest.mark.slow
async def test_load_balancers_are_told_who_is_what() -> None:
    async with shard_of(3) as shard:
        seen = await complete(shard)
        assert seen.state is not None
        primary, sync, last = (shard.peer(peer.id) for peer in seen.state.assigned)
        expected = {
            "/ping": (200, 200, 200),
            "/health": (200, 200, 200),
            "/primary": (200, 503, 503),
            "/sync": (503, 200, 503),
            "/async": (503, 503, 200),
            "/replica": (503, 200, 200),
        }
        found = {path: tuple([(await ask(peer, path))[0] for peer in (primary, sync, last)]) for path in expected}
        assert found == expected
        _, metrics = await ask(sync, "/metrics")
        for name in ("manatee_role", "manatee_generation", "manatee_postgres_up", "manatee_replication_lag_bytes"):
            assert name in metrics
        status, state = await ask(primary, "/state")
        assert (status, state["role"], state["generation"]) == (200, "primary", 1)


@pytest.mark.slow
async def test_a_sitter_without_zookeeper_starts_no_postgresql() -> None:
    async with shard_of(3) as shard:
        seen = await complete(shard)
        peer = sync_of(shard, seen)
        await shard.kill_peer(peer)
        await shard.zookeeper.kill()
        await shard.start_peer(peer)
        await _until(lambda: ask(peer, "/state"), timeout=30)
        await asyncio.sleep(SESSION_TIMEOUT)
        assert (await ask(peer, "/ping"))[0] == 503
        assert not (peer.settings.storage.data_dir / "postmaster.pid").exists() or not _alive(_postmaster(peer))
        await shard.zookeeper.start()
        await complete(shard)


@pytest.mark.slow
async def test_while_zookeeper_is_away_the_primary_goes_on_and_says_so() -> None:
    """Promise 6. Load balancers go on finding it; `/state` says what it goes by and what is missing."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        primary, sync = primary_of(shard, before), sync_of(shard, before)
        await shard.zookeeper.kill()
        async with asyncio.timeout(60):
            while "ZooKeeper has not been reached" not in (state := (await ask(primary, "/state"))[1])["reason"]:
                await asyncio.sleep(0.1)
        assert "PostgreSQL goes on as it was told last: primary of generation" in state["reason"]
        assert shard.zookeeper.servers in state["waitingFor"]
        assert not state["zookeeper"]["connected"]
        assert not state["fenced"]
        await asyncio.sleep(2 * SESSION_TIMEOUT)  # time in which it would have fenced itself, were its sync away, too
        await acknowledges(writer)
        assert (await ask(primary, "/primary"))[0] == 200
        assert (await ask(sync, "/sync"))[0] == 200
        await shard.zookeeper.start()
        after = await complete(shard)
        assert after.state == before.state


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_async_that_its_upstream_cannot_feed_follows_the_next_above() -> None:
    """The sync was restored while the async was away, and holds none of the log that the async needs next."""
    impatient = {"postgres": {"sync_grace": 2}}
    async with shard_of(3, overrides=impatient) as shard, writing(shard) as writer:
        before = await complete(shard)
        assert before.state is not None
        primary, sync, away = (shard.peer(peer.id) for peer in before.state.assigned)
        await shard.stop_peer(away)
        await shard.stop_peer(sync)
        await _switch_segments(primary)
        shutil.rmtree(sync.settings.storage.data_dir)
        (sync.settings.sitter.state_dir / "memory.json").unlink()
        await shard.start_peer(sync)
        await complete(shard, 2)
        await acknowledges(writer)
        await shard.start_peer(away)
        after = await complete(shard)
        assert after.state is not None
        assert away.id in [peer.id for peer in after.state.asyncs]
        _, restore = await ask(away, "/restore")
        assert restore["restore"] is None, "it was fed, not restored"


async def _switch_segments(peer: LocalPeer) -> None:
    """So that a base backup begins in another segment of the log. Without a sync, so nothing may wait for one."""
    async with await psycopg.AsyncConnection.connect(
        host=peer.ip, port=peer.settings.peer.postgres_port, user="postgres", autocommit=True, connect_timeout=5
    ) as connection:
        for _ in range(3):
            await connection.execute("select pg_logical_emit_message(false, 'more', 'x')")
            await connection.execute("select pg_switch_wal()")
        await connection.execute("checkpoint")


async def _promote(shard: LocalShard, *words: str) -> None:
    await adm("-z", shard.zookeeper.servers, "-s", shard.name, "promote", *words, "-y")


def _postmaster(peer: LocalPeer) -> int:
    return int((peer.settings.storage.data_dir / "postmaster.pid").read_text().split()[0])


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while _alive(pid):
            await asyncio.sleep(0.02)


async def _until(attempt: object, *, timeout: float) -> None:
    assert callable(attempt)
    async with asyncio.timeout(timeout):
        while True:
            try:
                await attempt()
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return

"""A peer that was away while much was written comes back by itself: the others have kept what it lacks."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from typing import LiteralString

import psycopg
import pytest

from demo.directory import run_directory
from demo.postgresql import unprivileged_user
from demo.shard import POSTGRESQL_CONF, LocalPeer
from sitter.postgres import slots
from tests.shard.conftest import acknowledges, ask, complete, primary_of, shard_of, sync_of, writing

FRUGAL = "wal_keep_size = 0\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n"
"""Nothing but a slot keeps WAL for long."""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_peer_that_was_away_needs_no_rebuild() -> None:
    with run_directory(readable_by=unprivileged_user()) as directory:
        base = directory / "postgresql.conf"
        base.write_text(POSTGRESQL_CONF + FRUGAL)
        overrides = {"postgres": {"config_file": base, "max_slot_wal_keep_size": 1024}}
        async with shard_of(3, overrides=overrides) as shard, writing(shard) as writer:
            before = await complete(shard)
            assert before.state is not None
            away = shard.peer(before.state.asyncs[0].id)
            others = primary_of(shard, before), sync_of(shard, before)
            for peer in others:
                await _until_kept(peer, away)
            await shard.stop_peer(away)
            for _ in range(12):
                await _run(others[0], "select pg_logical_emit_message(false, '', repeat('x', 17 << 20))")
                for peer in others:
                    await _run(peer, "checkpoint")
            await shard.start_peer(away)
            await acknowledges(writer)
            after = await complete(shard)
            assert after.state is not None
            assert [peer.id for peer in after.state.asyncs] == [away.id]
            assert (await ask(away, "/restore"))[1] == {"restore": None}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_who_is_being_restored_has_a_slot_from_the_beginning() -> None:
    """What it is sent may take hours to arrive, and must be followed from then on."""
    overrides: dict[str, dict[str, object]] = {
        "postgres": {"max_slot_wal_keep_size": 1024},
        "backup": {"bandwidth_limit": 2 << 20},
    }
    async with shard_of(3, overrides=overrides) as shard:
        before = await complete(shard)
        assert before.state is not None
        away = shard.peer(before.state.asyncs[0].id)
        others = primary_of(shard, before), sync_of(shard, before)
        for peer in others:
            await _until_kept(peer, away)
        await shard.stop_peer(away)
        shutil.rmtree(away.settings.storage.data_dir)
        for peer in others:
            await _run(peer, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active")
        for peer in others:
            await _until_kept(peer, away, kept=False)
        await shard.start_peer(away)
        for peer in others:
            await _until_kept(peer, away)
        assert (await ask(away, "/restore"))[1]["restore"]["state"] == "running"
        await complete(shard)


@pytest.mark.slow
async def test_a_bad_settings_file_changes_nothing_and_a_good_one_counts() -> None:
    """SIGHUP, on a primary that goes on all the time: what it was, what it refuses, what it takes up."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        peer = primary_of(shard, before)
        good = peer.settings_file.read_text()
        sitter = shard.supervisor.status(peer.programs[0]).pid
        assert sitter is not None

        peer.settings_file.write_text(good + "[nonsense]\n")
        os.kill(sitter, signal.SIGHUP)
        await _until_said(peer, "nonsense is not a setting")
        changed = good.replace("[postgres]\n", "[postgres]\nmax_slot_wal_keep_size = 64\n")
        peer.settings_file.write_text(changed.replace("[shard]\n", "[shard]\nsingleton = true\n"))
        os.kill(sitter, signal.SIGHUP)
        await _until_said(peer, "shard.singleton")
        await _until_kept(peer, sync_of(shard, before))
        await acknowledges(writer)
        after = await complete(shard)
        assert after.state == before.state
        assert shard.supervisor.status(peer.programs[0]).pid == sitter


async def _until_said(peer: LocalPeer, words: str, *, timeout: float = 30) -> None:
    async with asyncio.timeout(timeout):
        while words not in peer.log("sitter").read_text():
            await asyncio.sleep(0.1)


async def _until_kept(peer: LocalPeer, other: LocalPeer, *, kept: bool = True, timeout: float = 60) -> None:
    """Until `peer` says that it keeps a slot for the other, or none."""
    async with asyncio.timeout(timeout):
        while (slots.name(other.id) in (await ask(peer, "/state"))[1]["settings"]["slots"]) is not kept:
            await asyncio.sleep(0.1)


async def _run(peer: LocalPeer, statement: LiteralString) -> None:
    async with await psycopg.AsyncConnection.connect(
        host=peer.ip, port=peer.settings.peer.postgres_port, user="postgres", autocommit=True, connect_timeout=10
    ) as connection:
        await connection.execute(statement)

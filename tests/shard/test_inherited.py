"""Shards that Manatee 2 leaves: a state and data, and nobody who has ever proven anything."""

from __future__ import annotations

import asyncio

import pytest

from demo.shard import LocalShard
from manatee.cluster import Cluster
from tests.shard.conftest import (
    COMPLETE,
    acknowledges,
    adm,
    complete,
    generation_of,
    next_generation,
    primary_of,
    raw_client,
    shard_of,
    writing,
)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_shard_of_manatee_2_is_adopted_with_all_that_was_acknowledged() -> None:
    """Its primary was killed: where its log ends is found on disk, before anything runs."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        await _reborn(shard)
        await acknowledges(writer)
        after = await complete(shard)
        assert primary_of(shard, after).id == primary_of(shard, before).id
        assert generation_of(after) == generation_of(before)
        assert (await asyncio.to_thread(_cluster, shard)).by == primary_of(shard, after).id


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_deposed_peer_of_manatee_2_stays_so_and_says_what_it_holds() -> None:
    """Its PostgreSQL does not run: the position is the end of its log on disk."""
    async with shard_of(3, overrides={"postgres": {"rejoin": "never"}}) as shard, writing(shard) as writer:
        before = await complete(shard)
        deposed = primary_of(shard, before)
        await shard.kill_peer(deposed)
        before = await next_generation(shard, before)
        await acknowledges(writer)
        await _reborn(shard)
        await acknowledges(writer)
        told = await shard.wait_for(
            lambda seen: (status := seen.present.get(deposed.id)) and status.lsn and status.timeline,
            timeout=COMPLETE,
            what="the position of the deposed peer",
        )
        assert told.state is not None
        assert [peer.id for peer in told.state.deposed] == [deposed.id]
        assert primary_of(shard, told).id == primary_of(shard, before).id
        status = told.present[deposed.id]
        assert status is not None
        assert (status.running, status.timeline) == (False, 1)
        await adm("-c", str(deposed.settings_file), "rebuild", "-y")
        await complete(shard)


async def _reborn(shard: LocalShard) -> None:
    """Everything dies at one moment, and what starts anew finds what Manatee 2 leaves."""
    await shard.kill_peer(*shard.peers)
    await asyncio.to_thread(_leave_what_manatee_2_leaves, shard)
    for peer in shard.peers:
        await shard.start_peer(peer)


def _leave_what_manatee_2_leaves(shard: LocalShard) -> None:
    """The `state`, the history and the data."""
    for peer in shard.peers:
        (peer.settings.sitter.state_dir / "memory.json").unlink()
    with raw_client(shard) as client:
        root = shard.peers[0].settings.shard.root
        client.delete(f"{root}/cluster")
        client.delete(f"{root}/status", recursive=True)
        for node in client.get_children(f"{root}/election"):
            client.delete(f"{root}/election/{node}")


def _cluster(shard: LocalShard) -> Cluster:
    with raw_client(shard) as client:
        content, _ = client.get(f"{shard.peers[0].settings.shard.root}/cluster")
    return Cluster.parse(content)

"""Promise 1, on the real thing: whichever peer dies, no acknowledged commit is lost, and writes go on."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from demo.postgresql import Installation
from tests.shard.conftest import (
    COMPLETE,
    SESSION_TIMEOUT,
    acknowledges,
    adm,
    complete,
    generation_of,
    next_generation,
    primary_of,
    returns,
    shard_of,
    sync_of,
    writing,
)

ROUNDS = 5
HOPELESS = SESSION_TIMEOUT + 10.0
"""An outage longer than this is a defect; how long it is, `make bench` says."""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_nothing_is_lost_when_the_primary_is_killed_again_and_again(postgresql: Installation) -> None:
    """All that runs on the primary gets SIGKILL at once; the killed peer comes back, and the next primary dies."""
    outages = []
    async with shard_of(3, postgresql) as shard, writing(shard) as writer:
        for _ in range(ROUNDS):
            before = await complete(shard)
            primary, sync = primary_of(shard, before), sync_of(shard, before)
            await acknowledges(writer)
            killed_at = time.monotonic()
            await shard.kill_peer(primary)
            after = await next_generation(shard, before)
            assert primary_of(shard, after) == sync, "the old sync, and nobody else, is the new primary"
            await acknowledges(writer)
            outage = writer.outage_since(killed_at)
            assert outage is not None
            outages.append(outage.seconds)
            assert await writer.missing() == []
            await shard.start_peer(primary)
            if not await returns(shard, primary):
                await adm("-c", str(primary.settings_file), "rebuild", "-y")
        await complete(shard)
    assert max(outages) < HOPELESS, f"outages: {outages}, median {statistics.median(outages):.2f} s"


@pytest.mark.slow
async def test_writes_go_on_with_a_new_sync_when_the_sync_is_killed() -> None:
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        sync = sync_of(shard, before)
        await shard.kill_peer(sync)
        after = await next_generation(shard, before)
        assert primary_of(shard, after) == primary_of(shard, before)
        await acknowledges(writer)
        await shard.start_peer(sync)
        again = await complete(shard)
        assert again.state is not None
        assert again.state.asyncs[-1].id == sync.id, "it is back as the last async, without a rebuild"


@pytest.mark.slow
async def test_a_frozen_shard_declares_nothing_until_it_is_unfrozen() -> None:
    """Promise 5."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        await adm("-z", shard.zookeeper.servers, "-s", shard.name, "freeze", "-r", "maintenance")
        primary = primary_of(shard, before)
        await shard.kill_peer(primary)
        await shard.wait_for(lambda seen: primary.id not in seen.present, timeout=COMPLETE, what="an absent primary")
        await asyncio.sleep(3 * SESSION_TIMEOUT / 4)  # time in which a takeover would have happened
        assert generation_of(await shard.look()) == generation_of(before)
        await adm("-z", shard.zookeeper.servers, "-s", shard.name, "unfreeze")
        await next_generation(shard, before)
        await acknowledges(writer)

"""Who leaves or is moved on purpose costs no rebuild and loses nothing; its neighbours do not wait for timeouts."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from demo.postgresql import Installation
from demo.shard import LocalPeer, LocalShard
from tests.shard.conftest import (
    COMPLETE,
    acknowledges,
    ask,
    complete,
    generation_of,
    next_generation,
    primary_of,
    promote,
    shard_of,
    sync_of,
    writing,
)

IN_A_ROW = {15: 50}
"""Handovers by PostgreSQL's version, and five on the others."""

NEVER = {"postgres": {"sync_grace": 300}}
LONG_SESSION = 60.0
"""With these nothing that happens early can have happened because a time was over."""


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_handovers_in_a_row_lose_nothing_and_rebuild_nobody(postgresql: Installation) -> None:
    """The sync is promoted, again and again; the old primary is the last async every time."""
    rounds = IN_A_ROW.get(postgresql.major, 5)
    async with shard_of(3, postgresql) as shard, writing(shard) as writer:
        before = await complete(shard)
        restores = await restored(shard)
        been_primary = {primary_of(shard, before).id}
        for _ in range(rounds):
            primary, sync = primary_of(shard, before), sync_of(shard, before)
            after = await promote(shard, sync, "-r", "sync")
            assert generation_of(after) == generation_of(before) + 1
            assert primary_of(shard, after) == sync
            assert after.state is not None
            assert after.state.asyncs[-1].id == primary.id
            been_primary.add(sync.id)
            before = after
        await acknowledges(writer)
        assert await writer.missing() == []
        assert await restored(shard) == restores
        assert been_primary == {peer.id for peer in shard.peers}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_primary_that_is_stopped_hands_over_and_comes_back_as_the_last_async(postgresql: Installation) -> None:
    """SIGTERM, as a service manager that restarts it."""
    async with (
        shard_of(3, postgresql, overrides=NEVER, session_timeout=LONG_SESSION) as shard,
        writing(shard) as writer,
    ):
        before = await complete(shard)
        restores = await restored(shard)
        for _ in range(3):
            primary, sync = primary_of(shard, before), sync_of(shard, before)
            await acknowledges(writer)
            terminate(shard, primary)
            after = await next_generation(shard, before)
            assert primary_of(shard, after) == sync
            await acknowledges(writer)
            before = await complete(shard)
            assert before.state is not None
            assert before.state.asyncs[-1].id == primary.id
        # A sitter that was started again knows of no restore; nobody has begun another.
        assert {str(each) for each in await restored(shard)} <= {str(each) for each in (*restores, None)}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_neighbours_of_a_standby_that_is_stopped_pass_it_by_at_once() -> None:
    """An async, then the sync: nobody waits for a session to expire or for sync_grace."""
    async with shard_of(4, overrides=NEVER, session_timeout=LONG_SESSION) as shard, writing(shard) as writer:
        before = await complete(shard)
        assert before.state is not None
        primary, sync, middle, last = (shard.peer(peer.id) for peer in before.state.assigned)
        await shard.stop_peer(middle)
        fewer = await complete(shard, 3)
        assert generation_of(fewer) == generation_of(before)
        await follows(last, sync)
        await acknowledges(writer)
        await shard.stop_peer(sync)
        after = await next_generation(shard, fewer)
        assert (primary_of(shard, after), sync_of(shard, after)) == (primary, last)
        await acknowledges(writer)
        for gone in (sync, middle):
            await shard.start_peer(gone)
        await complete(shard)


def terminate(shard: LocalShard, peer: LocalPeer) -> None:
    """SIGTERM the sitter; the supervisor starts it again when it has gone."""
    pid = shard.supervisor.status(peer.programs[0]).pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)


async def restored(shard: LocalShard) -> list[dict[str, object] | None]:
    """The last restore of each peer since its sitter began."""
    return [(await ask(peer, "/restore"))[1]["restore"] for peer in shard.peers]


async def follows(peer: LocalPeer, upstream: LocalPeer) -> None:
    async with asyncio.timeout(COMPLETE):
        while (await ask(peer, "/state"))[1]["postgres"]["upstream"] != upstream.id:
            await asyncio.sleep(0.1)

"""Death that can be seen is not waited for: primary and sync evict each other when one is gone, and nobody else."""

from __future__ import annotations

import json
import os
import signal

import pytest

from demo.shard import LocalPeer
from tests.shard.conftest import (
    acknowledges,
    ask,
    complete,
    next_generation,
    primary_of,
    shard_of,
    sync_of,
    writing,
)

NEVER_IN_TIME = 40.0
"""Seconds that a session lives here: what happens before was not its end."""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_death_that_can_be_seen_is_not_waited_for() -> None:
    """SIGKILL of all of the primary, of all of the sync, and of the primary's sitter, which starts again at once."""
    rejoin = {"postgres": {"rejoin": "rebuild"}}
    async with (
        shard_of(3, session_timeout=NEVER_IN_TIME, overrides=rejoin) as shard,
        writing(shard) as writer,
    ):
        before = await complete(shard)
        primary, sync = primary_of(shard, before), sync_of(shard, before)
        await shard.kill_peer(primary)
        after = await next_generation(shard, before)
        assert primary_of(shard, after) == sync
        assert evictions(sync) == 1
        await acknowledges(writer)
        await shard.start_peer(primary)
        before = await complete(shard)
        primary, sync = primary_of(shard, before), sync_of(shard, before)
        already = evictions(primary)
        await shard.kill_peer(sync)
        after = await next_generation(shard, before)
        assert primary_of(shard, after) == primary
        assert evictions(primary) == already + 1
        await acknowledges(writer)
        await shard.start_peer(sync)
        before = await complete(shard)
        primary, sync = primary_of(shard, before), sync_of(shard, before)
        sitter = shard.supervisor.status(primary.programs[0]).pid
        assert sitter is not None
        os.kill(sitter, signal.SIGKILL)
        await acknowledges(writer)
        await complete(shard)
        _, state = await ask(sync, "/state")
        assert state["neighbour"]["seenDead"] is None


def evictions(peer: LocalPeer) -> int:
    """How many its sitter's log tells of."""
    lines = [json.loads(line) for line in peer.log("sitter").read_text().splitlines() if line.startswith("{")]
    return sum(line["event"].startswith("evicted a dead peer") for line in lines)

"""Promise 1 on the way of a takeover: whoever dies at whichever step of it, what was acknowledged is there."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.shard.conftest import COMPLETE, acknowledges, complete, primary_of, shard_of, sync_of, writing

STEPS = (
    "; sealing",
    '"event": "sealed"',
    '"event": "remembered"',
    "wrote the cluster state",
    '"event": "promoted"',
    "having commits wait for the sync",
)
"""What the sync's sitter logs on its way, one after the other: right after each it is killed."""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_sitter_killed_at_any_step_of_a_takeover_loses_nothing() -> None:
    """Between the seal and its memory, the write and its answer, the promotion and the first commit."""
    async with shard_of(3, overrides={"postgres": {"rejoin": "rebuild"}}) as shard, writing(shard) as writer:
        for step in STEPS:
            before = await complete(shard)
            await acknowledges(writer)
            primary, sync = primary_of(shard, before), sync_of(shard, before)
            log = sync.log("sitter")
            end = log.stat().st_size
            await shard.kill_peer(primary)
            assert await says(log, end, step), step
            sitter = shard.supervisor.status(sync.programs[0]).pid
            assert sitter is not None
            os.kill(sitter, signal.SIGKILL)
            await shard.start_peer(primary)
            await acknowledges(writer)
        await complete(shard)
        assert await writer.missing() == []


async def says(log: Path, since: int, words: str) -> bool:
    """Whether these words appear in the log within the time that a takeover may take."""
    deadline = asyncio.get_running_loop().time() + COMPLETE
    while asyncio.get_running_loop().time() < deadline:
        with log.open("rb") as lines:
            lines.seek(since)
            if words.encode() in lines.read():
                return True
        await asyncio.sleep(0.002)
    return False

"""What a shard costs when nothing happens."""

from __future__ import annotations

import asyncio
import time

import psutil
import pytest

from tests.shard.conftest import shard_of

IDLE = 20.0
"""Seconds to measure over."""


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_an_idle_sitter_costs_next_to_nothing() -> None:
    async with shard_of(3) as shard:
        sitters = [psutil.Process(shard.supervisor.status(f"sitter-{peer.number}").pid) for peer in shard.peers]

        def used() -> list[float]:
            return [sum(sitter.cpu_times()[:2]) for sitter in sitters]

        await asyncio.sleep(5)  # what follows the last change dies away
        before, began = used(), time.monotonic()
        await asyncio.sleep(IDLE)
        passed = time.monotonic() - began
        shares = [(after - earlier) / passed for earlier, after in zip(before, used(), strict=True)]
        resident = [sitter.memory_info().rss / 2**20 for sitter in sitters]
    assert max(shares) < 0.01, f"shares of a core: {shares}"
    assert max(resident) < 120, f"resident, MiB: {resident}"

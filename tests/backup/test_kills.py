"""A restore killed on either side at any moment ends in a running peer, with nothing left of it.

A few moments; `python -m tests.backup.kills` tries as many as it is told.
"""

from __future__ import annotations

import pytest

from demo import zfs
from tests.backup.kills import Storage, moments, one, prepare, shard_with


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("storage", "network", "count"), [("basebackup", "127.22.1", 3), ("zfs", "127.22.2", 2)])
async def test_killed_at_any_moment_it_ends_in_a_running_peer(storage: Storage, network: str, count: int) -> None:
    if storage == "zfs" and (missing := zfs.missing()):
        pytest.skip(missing)
    async with shard_with(storage, network) as shard:
        await prepare(shard)
        for moment in moments(seed=8, count=count):
            await one(shard, moment)

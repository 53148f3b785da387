"""What cannot be destroyed, since something of the operator's is in it: it stays, is told of, and holds up nothing."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from demo import zfs
from tests.storage.conftest import NewPeer
from tests.storage.stage import Peer, nothing_is_left, restore

STAYS = "what a restore has left stays"


@pytest.fixture
async def source(new_peer: NewPeer) -> Peer:
    return await new_peer().fill()


async def test_a_snapshot_of_what_was_being_received_holds_up_nothing(source: Peer, new_peer: NewPeer) -> None:
    """As cron takes them, of all that lies below the parent; even when the dataset was about to become live."""
    target = await new_peer().fill()
    left = f"{target.dataset}.restoring-1700000000001"
    zfs.run("zfs", "create", "-o", "mountpoint=none", "-o", "manatee:adopting=restore", left)
    zfs.run("zfs", "snapshot", f"{left}@auto-daily")
    with capture_logs() as logs:
        await target.storage.isolate("rebuild")
        await target.storage.open()
        assert not await target.storage.has_data()
        for _ in range(2):
            await restore(source, target)
        assert (await target.storage.drop_isolated(0)).count == 2
    assert [log["dataset"] for log in logs if log["event"] == STAYS] == [left]
    assert target.snapshots(left) == ["auto-daily"]
    assert target.content() == source.content()
    zfs.run("zfs", "destroy", f"{left}@auto-daily")
    async with nothing_is_left(source, target):
        assert await target.storage.clear_leftovers() == 1


async def test_what_was_put_aside_and_stays_is_told_with_the_reason_and_logged_once(new_peer: NewPeer) -> None:
    target = await new_peer().fill()
    isolated = str(await target.storage.isolate("rebuild"))
    zfs.run("zfs", "snapshot", f"{isolated}@auto-daily")
    with capture_logs() as logs:
        for _ in range(2):
            dropped = await target.storage.drop_isolated(0)
            assert dropped.count == 0
            assert "@auto-daily is not Manatee's" in dropped.stay[isolated]
    assert [log["dataset"] for log in logs if log["event"] == STAYS] == [isolated]
    zfs.run("zfs", "destroy", f"{isolated}@auto-daily")
    assert (await target.storage.drop_isolated(0)).count == 1

"""Snapshots: their names, whose they are, and which the snapshotter lets go."""

from __future__ import annotations

import time
from typing import cast

import pytest
import structlog

from backupserver.snapshotter import look
from demo import zfs
from manatee.log import Logger
from manatee.storage import StorageError
from manatee.storage.zfs.names import Names, is_own, new_name
from tests.storage.conftest import NewPeer
from tests.storage.stage import restore


def test_a_snapshot_is_named_by_the_time_and_never_before_the_last() -> None:
    now = time.time() * 1000
    assert abs(int(new_name()) - now) < 60_000
    assert new_name("9999999999998") == "9999999999999"
    assert is_own(new_name())
    assert not any(map(is_own, ("before-upgrade", "170000000000", "17000000000000", "1700000000001x")))


def test_only_what_bears_this_peers_names_is_its_own() -> None:
    names = Names("tank/a.b")
    assert names.is_restoring("tank/a.b.restoring-1700000000001")
    assert not names.is_restoring("tank/axb.restoring-1700000000001")
    assert not names.is_restoring("tank/other/a.b.restoring-1700000000001")
    assert names.is_isolated("tank/isolated/rebuild-1700000000001")
    assert not names.is_isolated("tank/isolated/rebuild-1700000000001/below")
    with pytest.raises(ValueError, match="cannot begin"):
        names.new_isolated("../x")


async def test_the_snapshotter_keeps_the_newest_and_what_is_in_use_or_not_its_own(new_peer: NewPeer) -> None:
    peer = await new_peer().fill()
    settings = peer.settings.model_copy(
        update={"snapshotter": peer.settings.snapshotter.model_copy(update={"keep": 2, "interval": 0.001})}
    )
    log = cast(Logger, structlog.get_logger())
    for name in ("before-upgrade", "1600000000001", "1600000000002", "1600000000003"):
        zfs.run("zfs", "snapshot", f"{peer.dataset}@{name}")
    zfs.run("zfs", "hold", "mine", f"{peer.dataset}@1600000000001")
    zfs.run("zfs", "clone", f"{peer.dataset}@1600000000002", f"{peer.parent}/look")
    await look(peer.storage, settings, log)
    await look(peer.storage, settings, log)
    left = peer.snapshots()
    assert {"before-upgrade", "1600000000001", "1600000000002"} < set(left)
    assert "1600000000003" not in left
    assert len(left) == 5
    with pytest.raises(StorageError, match="not Manatee's"):
        await peer.storage.drop_snapshot("before-upgrade")
    zfs.run("zfs", "release", "mine", f"{peer.dataset}@1600000000001")


async def test_the_snapshot_that_a_peer_shares_outlives_its_time(new_peer: NewPeer) -> None:
    """Without it the peer's next rebuild would move everything."""
    source, target = await new_peer().fill(), new_peer()
    await restore(source, target)
    await restore(source, target)
    older, shared = source.snapshots()
    settings = source.settings.model_copy(
        update={"snapshotter": source.settings.snapshotter.model_copy(update={"keep": 1, "interval": 0.001})}
    )
    await look(source.storage, settings, cast(Logger, structlog.get_logger()))
    assert older not in source.snapshots()
    assert shared in source.snapshots()
    assert (await restore(source, target))[0] == "increment"

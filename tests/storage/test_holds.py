"""Holds through zfs(8): nothing that fails about one is worth the stream, and none stays for good."""

from __future__ import annotations

import pytest

from manatee.storage.zfs import command, holds
from manatee.storage.zfs.command import zfs
from manatee.storage.zfs.errors import ZfsError
from manatee.storage.zfs.names import Names
from tests.storage.conftest import NewPeer


async def test_a_hold_that_cannot_be_released_is_a_stale_one_from_then_on(
    new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await new_peer().fill()
    names = Names(peer.dataset)
    snapshot = f"{peer.dataset}@{(await peer.storage.take_snapshot()).name}"

    async def refuse(*arguments: str, patient: bool = True) -> str:
        if arguments[0] == "release":
            raise ZfsError("no answer within 60 s")
        return await zfs(*arguments, patient=patient)

    held = await command.get(snapshot, ("guid",))
    assert held is not None
    hold = await holds.take(names, held)
    assert await holds.release_stale(names) == 0
    monkeypatch.setattr(holds, "zfs", refuse)
    await holds.release(names, hold)
    assert peer.holds() == 2  # and its record
    monkeypatch.undo()
    assert await holds.release_stale(names) == 1
    assert peer.holds() == 0

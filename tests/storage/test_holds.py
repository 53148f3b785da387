"""Holds through zfs(8): nothing that fails about one is worth the stream, and none stays for good."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from manatee.storage.zfs import command, holds
from manatee.storage.zfs.command import Dataset, Value, zfs
from manatee.storage.zfs.errors import ZfsError
from manatee.storage.zfs.names import Names
from manatee.storage.zfs.picture import Picture
from manatee.storage.zfs.place import Place
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


def test_what_somebody_else_has_written_is_neither_a_hold_nor_an_error() -> None:
    """Below the parent everybody's properties are read; nothing of them may end a restore, or the releasing."""
    for tag in ("by-hand", "", "1-2", "x-1-1"):
        assert holds._alive(tag), "what we have not taken we do not release"
    assert not holds._alive("4194305-1-1"), "beyond the greatest pid there can be"
    said = "p/a\torg:note\tone\ttwo\nthree\tlocal\np/b\tguid\t7\t-\n"
    one, two = command._parse(said)
    assert (one.name, two.name, two["guid"]) == ("p/a", "p/b", "7")


async def test_the_key_of_what_has_taken_its_name_is_loaded_by_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a reboot in the middle of an adoption it is not loaded, and the name from before is nobody's."""
    names = Names("p/live")
    had = {"mountpoint": str(tmp_path), "mounted": "no", "keystatus": "unavailable", "encryption": "aes-256-gcm"}

    def called(name: str) -> Dataset:
        return Dataset(name, {key: Value(value, "local") for key, value in {**had, "encryptionroot": name}.items()})

    done: list[tuple[str, ...]] = []

    async def record(*arguments: str) -> str:
        done.append(arguments)
        return ""

    async def look() -> Picture:
        return Picture(names, {"p/live": called("p/live")})

    under_test = Place(names, tmp_path, None, structlog.get_logger())
    monkeypatch.setattr("manatee.storage.zfs.place.zfs", record)
    monkeypatch.setattr("manatee.storage.zfs.place._is_root_of_a_filesystem", lambda _: True)
    monkeypatch.setattr(under_test, "look", look)
    await under_test._take_name(called("p/live.restoring-1700000000000"))
    assert done[-2:] == [("load-key", "p/live"), ("mount", "p/live")]

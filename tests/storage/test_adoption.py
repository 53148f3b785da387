"""The moments in which nothing is live, or something else could become so: the only complete copy always stays."""

from __future__ import annotations

from typing import Any

import pytest

from demo import zfs
from manatee.storage import NoDatabase, Offer, child
from manatee.storage.zfs import by_command, by_library, command, place
from manatee.storage.zfs.command import zfs as run
from manatee.storage.zfs.errors import Busy
from tests.storage.conftest import NewPeer
from tests.storage.stage import IDENTITY, Peer, nothing_is_left, restore, sent, take_bytes


@pytest.fixture
async def source(new_peer: NewPeer) -> Peer:
    return await new_peer().fill()


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "for long"])
async def test_a_name_that_cannot_be_taken_costs_nothing(
    source: Peer, new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The old data have made way and the new do not get their name: they are complete, and the only ones."""
    target, left = await new_peer().fill(), times

    async def refuse(*arguments: str, **options: Any) -> str:
        nonlocal left
        if arguments[0] == "rename" and arguments[2] == target.dataset and left:
            left -= 1
            raise Busy("cannot rename: dataset is busy")
        return await run(*arguments, **options)

    monkeypatch.setattr(place, "zfs", refuse)
    if times == 1:
        await restore(source, target)
    else:
        with pytest.raises(Busy):
            await restore(source, target)
        with pytest.raises(Busy):
            await target.storage.clear_leftovers(resumable=True)
        assert len(target.datasets()) == 2
        left = 0
        await target.storage.clear_leftovers(resumable=True)
    async with nothing_is_left(source, target):
        await target.storage.drop_isolated(0)
    assert target.content() == source.content()


async def test_old_data_that_could_not_make_way_are_reachable_again(
    source: Peer, new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await new_peer().fill()
    before = target.content()

    async def refuse(*arguments: str, **options: Any) -> str:
        if arguments[:2] == ("rename", target.dataset):
            raise Busy("cannot rename: dataset is busy")
        return await run(*arguments, **options)

    monkeypatch.setattr(place, "zfs", refuse)
    async with nothing_is_left(source, target):
        with pytest.raises(Busy):
            await restore(source, target)
    assert target.content() == before


async def test_what_is_left_of_a_restore_does_not_become_live_by_itself(new_peer: NewPeer) -> None:
    """Not when the data are set aside after it was marked, and not under filesystems that an operator has made."""
    target = await new_peer().fill()
    marked = f"{target.dataset}.restoring-1700000000001"
    zfs.run("zfs", "create", "-o", "mountpoint=none", "-o", "manatee:adopting=restore", marked)
    isolated = await target.storage.isolate("rebuild")
    await target.storage.open()
    assert not await target.storage.has_data()
    assert marked.rpartition("/")[2] not in target.datasets()
    zfs.run("zfs", "create", "-o", "mountpoint=none", f"{isolated}/operators")
    assert (await target.storage.drop_isolated(0)).count == 0
    assert any(name.endswith("/operators") for name in target.datasets())


async def test_what_a_rewind_has_torn_is_neither_sent_nor_kept_as_a_snapshot(source: Peer) -> None:
    source.settings.sitter.rewind_mark.touch()
    for attempt in (source.storage.take_snapshot(), source.storage.send({}).__aenter__()):
        with pytest.raises(NoDatabase, match="rewind"):
            await attempt
    assert source.snapshots() == []


async def test_what_a_rewind_tears_while_its_snapshot_is_taken_is_neither_sent_nor_kept(
    source: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = source.settings.sitter.rewind_mark
    kind: Any = {"zfs": by_command.Command, "libzfs_core": by_library.Library}[source.settings.storage.zfs_interface]
    take = kind.snapshot

    async def torn(self: Any, *arguments: Any) -> None:
        await take(self, *arguments)
        mark.touch()

    monkeypatch.setattr(kind, "snapshot", torn)
    for attempt in (source.storage.take_snapshot(), source.storage.send({}).__aenter__()):
        mark.unlink(missing_ok=True)
        with pytest.raises(NoDatabase, match="rewind"):
            await attempt
    assert source.snapshots() == []


async def test_what_is_left_of_another_restore_does_not_take_the_room(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    source.write("much", 3_000_000)
    zfs.run("zfs", "snapshot", f"{source.dataset}@1700000000009")
    left = f"{target.dataset}.restoring-1700000000001"
    zfs.run("zfs", "create", "-o", f"mountpoint={target.directory}/left", left)
    (target.directory / "left" / "much").write_bytes((source.data / "base" / "much").read_bytes())
    zfs.run("zfs", "unmount", left)
    zfs.run("zfs", "set", f"quota={int(target.get('used', target.parent)) + (2 << 20)}", target.parent)
    offer = Offer("zfs", "1700000000009", IDENTITY, 4 << 20, {"form": "full"})
    await take_bytes(target, offer, sent(source, "1700000000009"))
    assert target.content() == source.content()
    assert target.datasets() == ["manatee"]


async def test_a_restore_asks_zfs_little(source: Peer, new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is a program to start: on a busy machine they are what a small restore takes."""
    target = new_peer()
    await restore(source, target)
    output, asked = child.output, list[str]()

    async def counted(argv: list[str], **options: Any) -> tuple[int, str, str]:
        asked.append(" ".join(argv[1:]))
        return await output(argv, **options)

    monkeypatch.setattr(command, "output", counted)
    assert (await restore(source, target))[0] == "increment"
    # Both ends; the increment before this was counted took 68. OpenZFS has two more, for what it cannot receive with.
    assert len(asked) <= 36, "\n".join(asked)

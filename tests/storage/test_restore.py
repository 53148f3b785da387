"""What a restore brings, what it leaves alone, and what it is refused for."""

from __future__ import annotations

import os
from typing import Any

import pytest
from structlog.testing import capture_logs

from demo import zfs
from demo.directory import run_directory
from demo.postgresql import Installation
from manatee.storage import Identity, NoDatabase, NoSpace, Offer, ReceiveFailed, StorageError, UnsupportedLayout
from manatee.storage.zfs import place, receiving
from manatee.storage.zfs.command import zfs as run
from manatee.storage.zfs.errors import Denied
from manatee.storage.zfs.picture import Picture
from tests.storage.conftest import NewPeer
from tests.storage.stage import IDENTITY, Peer, nothing_is_left, restore, sent, take, take_bytes


@pytest.fixture
async def source(new_peer: NewPeer) -> Peer:
    return await new_peer().fill()


async def test_a_peer_without_data_gets_all_of_them(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    await target.storage.open()
    assert not await target.storage.has_data()
    async with nothing_is_left(source, target):
        form, _ = await restore(source, target)
    assert form == "full"
    assert target.content() == source.content()
    assert not (target.data / "postmaster.pid").exists()
    assert await target.storage.identity() == IDENTITY
    assert target.get("mountpoint") == str(target.data.parent)
    assert target.get("canmount") == "noauto"
    assert target.get("recordsize") == str(8 << 10)
    assert target.snapshots() == source.snapshots()
    if os.geteuid() == 0 and target.settings.postgres.user:
        assert (target.data / "base").owner() == target.settings.postgres.user


async def test_only_the_difference_is_moved_and_what_diverged_is_gone(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    source.write("much", 3_000_000)
    _, whole = await restore(source, target)
    source.write("new", 30_000)
    target.write("diverged", 30_000)
    (target.data / "base" / "bulk").unlink()
    async with nothing_is_left(source, target):
        form, moved = await restore(source, target)
        assert len(target.datasets()) == 2
        assert (await target.storage.drop_isolated(0)).count == 1
    assert (form, moved < whole / 20) == ("increment", True)
    assert target.content() == source.content()


async def test_what_was_put_aside_is_built_upon_unless_that_is_not_wanted(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    await restore(source, target)
    async with nothing_is_left(source, target):
        isolated = await target.storage.isolate("rebuild")
        assert not await target.storage.has_data()
        assert not target.data.exists()
        assert str(isolated).startswith(f"{target.parent}/isolated/rebuild-")
        assert (await restore(source, target))[0] == "increment"
        await target.storage.isolate("rebuild", base=False)
        assert (await restore(source, target))[0] == "full"
        assert (await target.storage.drop_isolated(0)).count == 2
    assert target.content() == source.content()


async def test_data_without_a_database_are_not_built_upon_either_if_that_is_not_wanted(
    source: Peer, new_peer: NewPeer
) -> None:
    target = new_peer()
    await restore(source, target)
    (target.data / "global" / "pg_control").unlink()
    assert await target.storage.isolate("rebuild", base=False) is None
    assert (await restore(source, target))[0] == "full"
    assert (await restore(source, target))[0] == "increment"


async def test_what_an_increment_that_was_cut_builds_on_is_built_upon_again(
    source: Peer, new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender's snapshot is gone. (Made by hand here: not every ZFS leaves anything of a stream that was cut.)"""
    target = new_peer()
    await restore(source, target)
    (base,) = target.snapshots()
    cut = f"{target.dataset}.restoring-1700000000001"
    zfs.run("zfs", "clone", "-o", "mountpoint=none", "-o", "canmount=noauto", f"{target.dataset}@{base}", cut)
    zfs.run("zfs", "promote", cut)
    monkeypatch.setattr(Picture, "partial", property(lambda seen: seen.found.get(cut)))
    async with nothing_is_left(source, target):
        assert (await restore(source, target))[0] == "increment"
        await target.storage.drop_isolated(0)
    assert base in target.snapshots()


async def test_two_peers_that_were_restored_from_a_third_can_both_be_rebuilt_from_it(
    source: Peer, new_peer: NewPeer
) -> None:
    first, second = new_peer(), new_peer()
    await restore(source, first)
    await restore(source, second)
    assert await first.storage.related() == await second.storage.related() == {source.settings.identity.id}
    assert await source.storage.related() == {first.settings.identity.id, second.settings.identity.id}
    assert (await restore(first, second))[0] == "full"  # these two have nothing in common
    assert (await restore(source, first))[0] == "increment"


async def test_the_old_data_are_kept_as_many_as_wanted(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    for _ in range(4):
        await restore(source, target)
    kept = [name for name in target.datasets() if name.startswith("isolated/")]
    assert len(kept) == 3
    assert (await target.storage.drop_isolated(2)).count == 1
    assert target.datasets() == [*kept[1:], "manatee"]
    assert target.get("mountpoint", f"{target.parent}/{kept[2]}") == "none"
    async with nothing_is_left(target):
        await target.storage.drop_isolated(0)
    assert target.content() == source.content()


async def test_properties_that_an_operator_has_set_outlive_a_restore(source: Peer, new_peer: NewPeer) -> None:
    target = await new_peer().fill()
    for name, value in (("recordsize", "16384"), ("com.example:owner", "dba"), ("quota", str(500 << 20))):
        zfs.run("zfs", "set", f"{name}={value}", target.dataset)
    await restore(source, target)
    assert target.get("recordsize") == "16384"
    assert target.get("com.example:owner") == "dba"
    assert target.get("quota") == str(500 << 20)


@pytest.mark.parametrize("form", ["full", "increment"])
async def test_a_property_that_may_not_be_set_is_not_carried_over_and_the_others_are(
    source: Peer, new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A command is refused as a whole that would set one which was not delegated."""
    target = new_peer()
    if form == "full":
        await target.fill()
    else:
        await restore(source, target)
    properties = ("recordsize=16384", "checksum=sha256", "copies=2", "com.example:owner=dba")
    for each in properties:
        zfs.run("zfs", "set", each, target.dataset)

    async def refuse(*arguments: str, **options: Any) -> str:
        if any(word.startswith(("checksum=", "copies=")) for word in arguments):
            raise Denied("permission denied")
        return await run(*arguments, **options)

    for module in (place, receiving):
        monkeypatch.setattr(module, "zfs", refuse)
    with capture_logs() as logs:
        assert (await restore(source, target))[0] == form
    assert (target.get("recordsize"), target.get("com.example:owner")) == ("16384", "dba")
    assert (target.get("checksum"), target.get("copies")) != ("sha256", "2")
    refused = [log["refused"] for log in logs if log["event"] == "properties were not carried over"]
    assert refused
    assert {name for each in refused for name in each} == {"checksum", "copies"}


async def test_unsuitable_properties_are_reported_and_left(source: Peer) -> None:
    zfs.run("zfs", "set", "recordsize=128K", source.dataset)
    zfs.run("zfs", "set", "atime=on", source.dataset)
    await source.storage.open()
    advice = source.storage.detail["advice"]
    assert isinstance(advice, list)
    assert [f"zfs set {setting} {source.dataset}" in " ".join(advice) for setting in ("recordsize=8K", "atime=off")]
    assert len(advice) == 2
    assert source.get("recordsize") == str(128 << 10)


async def test_too_little_space_is_found_out_before(source: Peer, new_peer: NewPeer) -> None:
    target = new_peer()
    source.write("much", 5_000_000)
    zfs.run("zfs", "set", "quota=2M", target.parent)
    async with source.storage.send(await target.storage.wanted()) as sending:
        with pytest.raises(NoSpace, match="MiB free"):
            async with target.storage.receive(sending.offer):
                pass
    assert target.datasets() == []


async def test_the_disk_becomes_full_on_the_way(source: Peer, new_peer: NewPeer) -> None:
    target = await new_peer().fill()
    before = target.content()
    source.write("much", 8_000_000)
    zfs.run("zfs", "set", f"quota={int(target.get('used', target.parent)) + (3 << 20)}", target.parent)
    async with nothing_is_left(target), source.storage.send({}) as sending:
        offer = Offer("zfs", sending.offer.snapshot, IDENTITY, None, {"form": "full"})
        with pytest.raises(NoSpace):
            await take(target, offer, sending)
    assert target.content() == before


async def test_the_pool_becomes_full_on_the_way(
    source: Peer, interface: str, any_postgresql: Installation, postgres_user: str | None
) -> None:
    """Nothing of it could be foreseen. The old data go on, and what has come makes room again."""
    source.write("much", 24_000_000)
    with run_directory(readable_by=postgres_user) as directory, zfs.pool(directory, size=64 << 20) as small:
        target = Peer(small, directory, interface, postgres_user, any_postgresql.bin_dir)
        await target.fill(20_000_000)
        before = target.content()
        async with nothing_is_left(source, target), source.storage.send({}) as sending:
            offer = Offer("zfs", sending.offer.snapshot, IDENTITY, None, {"form": "full"})
            with pytest.raises(NoSpace, match="no space left for"):
                await take(target, offer, sending)
        assert target.content() == before
        target.write("goes on", 100_000)
        target.destroy()


async def test_what_is_no_database_does_not_become_live(new_peer: NewPeer) -> None:
    source, target = await new_peer().fill(), await new_peer().fill()
    before = target.content()
    (source.data / "global" / "pg_control").write_bytes(bytes(8))
    zfs.run("zfs", "snapshot", f"{source.dataset}@1700000000009")
    offer = Offer("zfs", "1700000000009", IDENTITY, None, {"form": "full"})
    async with nothing_is_left(target):
        with pytest.raises(ReceiveFailed, match="no database"):
            await take_bytes(target, offer, sent(source, "1700000000009"))
    assert target.content() == before


@pytest.mark.parametrize("what", ["pg_wal", "tablespace", "other filesystem", "dataset below"])
async def test_a_database_that_is_not_all_in_its_dataset_is_refused(source: Peer, what: str) -> None:
    if what == "pg_wal":
        (source.data / "pg_wal").rmdir()
        (source.data / "pg_wal").symlink_to("/tmp")
    elif what == "tablespace":
        (source.data / "pg_tblspc" / "16384").symlink_to("/tmp")
    elif what == "other filesystem":
        zfs.run("zfs", "create", "-o", f"mountpoint={source.data}/pg_xact", f"{source.parent}/elsewhere")
    else:
        zfs.run("zfs", "create", f"{source.dataset}/pg_wal")
    with pytest.raises(UnsupportedLayout):
        async with source.storage.send({}):
            pass
    with pytest.raises(UnsupportedLayout):
        await source.storage.take_snapshot()


async def test_what_is_not_manatees_stays(source: Peer, new_peer: NewPeer) -> None:
    """An operator's snapshot, hold or clone keeps what was put aside; another peer's things are its own."""
    target = await new_peer().fill()
    zfs.run("zfs", "create", f"{target.parent}/isolated")
    zfs.run("zfs", "create", f"{target.parent}/isolated/restore-1700000000001")
    zfs.run("zfs", "create", f"{target.parent}/other.restoring-1700000000001")
    await restore(source, target)
    held, cloned, named = await _three_put_aside(source, target)
    zfs.run("zfs", "snapshot", f"{target.parent}/{named}@before-upgrade")
    for each in (held, cloned):
        zfs.run("zfs", "snapshot", f"{target.parent}/{each}@1700000000009")
    zfs.run("zfs", "hold", "mine", f"{target.parent}/{held}@1700000000009")
    zfs.run("zfs", "clone", f"{target.parent}/{cloned}@1700000000009", f"{target.parent}/look")
    await target.storage.drop_isolated(0)
    await target.storage.clear_leftovers()
    left = target.datasets()
    assert {held, cloned, named, "look", "manatee", "isolated/restore-1700000000001"} <= set(left)
    assert "other.restoring-1700000000001" in left
    zfs.run("zfs", "release", "mine", f"{target.parent}/{held}@1700000000009")
    zfs.run("zfs", "destroy", f"{target.parent}/{named}@before-upgrade")
    zfs.run("zfs", "destroy", f"{target.parent}/look")
    assert (await target.storage.drop_isolated(0)).count == 3
    assert target.content() == source.content()


async def _three_put_aside(source: Peer, target: Peer) -> list[str]:
    await target.storage.drop_isolated(0)
    for _ in range(3):
        await restore(source, target)
    return [name for name in target.datasets() if name.startswith("isolated/") and not name.endswith("1700000000001")]


async def test_a_dataset_that_is_not_where_it_belongs_is_not_guessed_at(source: Peer) -> None:
    directory = source.data.parent
    zfs.run("zfs", "unmount", source.dataset)
    assert not await source.storage.has_data()
    with pytest.raises(NoDatabase, match="not mounted"):
        await source.storage.identity()
    (directory / "data").mkdir()
    with pytest.raises(StorageError, match="holds files"):
        await source.storage.open()
    (directory / "data").rmdir()
    await source.storage.open()
    assert await source.storage.has_data()
    zfs.run("zfs", "set", f"mountpoint={source.directory}/elsewhere", source.dataset)
    with pytest.raises(StorageError, match="zfs set mountpoint="):
        await source.storage.open()
    zfs.run("zfs", "set", f"mountpoint={directory}", source.dataset)


async def test_a_pool_that_is_not_there_is_no_peer_without_data(new_peer: NewPeer) -> None:
    peer = new_peer()
    zfs.run("zfs", "rename", peer.parent, f"{peer.parent}-away")
    try:
        with pytest.raises(StorageError, match="is the pool imported"):
            await peer.storage.has_data()
        with pytest.raises(StorageError, match="is the pool imported"):
            await peer.storage.open()
    finally:
        zfs.run("zfs", "rename", f"{peer.parent}-away", peer.parent)


async def test_the_stream_must_be_one_for_this_driver(source: Peer) -> None:
    offer = Offer("basebackup", "1700000000001", Identity("1", "15"))
    with pytest.raises(ReceiveFailed, match="basebackup"):
        async with source.storage.receive(offer):
            pass
    with pytest.raises(StorageError, match="basebackup"):
        async with source.storage.send({"driver": "basebackup"}):
            pass

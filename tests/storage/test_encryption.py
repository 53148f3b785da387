"""Encrypted data, on a ZFS that has such: they travel as they lie on the disk where they can; none become plain."""

from __future__ import annotations

import os

import pytest

from demo import zfs
from manatee.storage import Offer, ReceiveFailed
from manatee.storage.zfs import command
from tests.storage.conftest import NewPeer
from tests.storage.stage import IDENTITY, Peer, nothing_is_left, restore, sent, take, take_bytes


@pytest.fixture
async def key(pool: tuple[str, object], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The properties of what is encrypted with one key."""
    if "encryption" not in await command.features(pool[0]):
        pytest.skip("this ZFS (zfs-fuse?) does not encrypt: make test-zfs runs it on one that does")
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_bytes(os.urandom(32))
    return ("encryption=on", "keyformat=raw", f"keylocation=file://{file}")


async def encrypted(peer: Peer, key: tuple[str, ...]) -> Peer:
    """Its live dataset, below a parent that is not."""
    options = (*key, "canmount=noauto", f"mountpoint={peer.data.parent}")
    zfs.run("zfs", "create", *(word for each in options for word in ("-o", each)), peer.dataset)
    return await peer.fill()


async def test_encrypted_data_are_restored_as_they_lie_on_the_disk(new_peer: NewPeer, key: tuple[str, ...]) -> None:
    """All of them, and the difference for a rebuild; by a peer whose own have that key, and which has it in a file."""
    source, target = await new_peer(*key).fill(), await encrypted(new_peer(), key)
    for form in ("full", "increment"):
        source.write(form)
        async with nothing_is_left(source, target):
            if form == "increment":
                assert "guids" not in await target.storage.wanted()
                await target.storage.isolate("rebuild")
            async with source.storage.send(await target.storage.wanted()) as sending:
                assert (sending.offer.detail["form"], sending.offer.detail.get("raw")) == (form, "yes")
                await take(target, sending.offer, sending)
            await target.storage.drop_isolated(0)
        assert target.content() == source.content()
        assert target.get("encryption") != "off"
        ivsets = {peer.get("ivsetguid", f"{peer.dataset}@{peer.snapshots()[-1]}") for peer in (source, target)}
        assert len(ivsets) == 1
    zfs.run("zfs", "unmount", target.dataset)
    zfs.run("zfs", "unload-key", target.dataset)  # as after a reboot
    await target.storage.open()
    assert await target.storage.has_data()


async def test_below_an_encrypted_parent_whatever_comes_is_encrypted(new_peer: NewPeer, key: tuple[str, ...]) -> None:
    source, target = await new_peer().fill(), new_peer(*key)
    for form in ("full", "increment"):
        source.write(form)
        assert (await restore(source, target))[0] == form
        assert target.get("encryption") != "off"
        assert target.get("mountpoint") == str(target.data.parent)
        assert target.content() == source.content()


async def test_encrypted_data_do_not_become_plain(new_peer: NewPeer, key: tuple[str, ...]) -> None:
    source, target = await new_peer().fill(), await encrypted(new_peer(), key)
    before = target.content()
    zfs.run("zfs", "snapshot", f"{source.dataset}@1700000000009")
    offer = Offer("zfs", "1700000000009", IDENTITY, None, {"form": "full"})
    async with nothing_is_left(target):
        with pytest.raises(ReceiveFailed, match="below an encrypted parent"):
            await take_bytes(target, offer, sent(source, "1700000000009"))
    assert target.content() == before

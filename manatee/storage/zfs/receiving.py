"""A snapshot on its way in: received beside the live data, looked at, and only then given their name.

An increment needs a dataset whose newest snapshot is the common one. That is a clone of it, promoted: the common
snapshot and what came before change hands, and the live data are the clone from then on. Nothing is rolled back, so
they stay as they are until the new ones take their place; given up, `Place.destroy` promotes them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from manatee.storage import Offer, datadir, pipe
from manatee.storage.child import Account
from manatee.storage.datadir import Identity
from manatee.storage.errors import NoDatabase, NoSpace, ReceiveFailed, StorageError
from manatee.storage.zfs import command
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import ZfsError
from manatee.storage.zfs.interface import Interface, Moving
from manatee.storage.zfs.names import FROM, OF, SHARED
from manatee.storage.zfs.picture import Picture
from manatee.storage.zfs.place import Place

FREED_WITHIN = 60.0
"""Seconds for which a pool may give back space before it is taken for too small."""
_GLANCE = 0.5
_ROOM = 1.02
"""Metadata take a little more than the stream."""
_FULL = ("out of space", "no space", "quota")


class Refused(ReceiveFailed):
    """ZFS takes the stream for unusable here: asking for the same again is pointless."""


@dataclass(frozen=True)
class Target:
    """The dataset that is received into."""

    name: str
    scratch: Path
    """Where it is looked at before anybody else can: not in the way of the live data."""
    key: str | None = None
    """Where its key is to be read from, should it be received with one: a raw stream brings the key, not the place."""
    over: bool = False
    """It is there and empty: nothing of it counts but its properties."""


class Receiving:
    """`manatee.storage.Receiving` into `target`."""

    def __init__(
        self,
        place: Place,
        target: Target,
        offer: Offer,
        moving: Moving,
        fd: int,
        owner: Account | None,
    ) -> None:
        self.fd = fd
        self.adopted = False
        self.refused = False
        self.full = False
        self._place = place
        self._target = target.name
        self._scratch = target.scratch
        self._key = target.key
        self._offer = offer
        self._sender = offer.detail.get("peer")
        self._moving = moving
        self._owner = owner
        self._open = True
        self._given_up = threading.Event()
        self._adoption: asyncio.Task[str | None] | None = None

    async def complete(self) -> Identity:
        self.close()
        try:
            await self._moving.ended()
        except ZfsError as error:
            if any(sign in str(error).lower() for sign in _FULL):
                self.full = True
                raise NoSpace(f"no space left for {self._target}: {error}") from error
            self.refused = True
            raise Refused(f"ZFS does not take the stream: {error}") from error
        return await self._check()

    async def _check(self) -> Identity:
        """Look at the data where nobody else does, and make them fit to be started."""
        place, target = self._place, self._target
        found = await command.get(target, ("canmount", "mountpoint", "keystatus"))
        if found is None:
            raise ReceiveFailed(f"{target} is gone: somebody has destroyed it")
        if (found["canmount"], found["mountpoint"]) != ("noauto", str(self._scratch)) or not found.readable:
            await self._dress()
        async with self._mounted():
            here = await asyncio.to_thread(self._finish)
        await zfs("set", f"mountpoint={place.directory}", target)
        if self._sender:
            await zfs("set", f"{SHARED}={self._sender}", f"{target}@{self._offer.snapshot}")
        return here

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[None]:
        """It is mounted for the block. What ends the block is not replaced by an unmount that fails after it."""
        await self._place.mount_at(self._target, self._scratch)
        try:
            yield
        except BaseException:
            self._given_up.set()  # a thread that still works in it would keep it busy
            try:
                await self._unmount()
            except ZfsError as error:
                structlog.get_logger().warning(
                    "what was received stays mounted for now", dataset=self._target, reason=str(error)
                )
            raise
        await self._unmount()

    async def _unmount(self) -> None:
        await asyncio.shield(asyncio.create_task(zfs("unmount", self._target)))

    async def _dress(self) -> None:
        """Give it the properties that it could not be made with, and its key."""
        place, target = self._place, self._target
        seen = await place.look()
        found = seen.found[target]
        await place.dress(target, {"canmount": "noauto", **await place.suitable(seen)})
        if not found.readable:
            try:
                if self._key is not None and found["encryptionroot"] == target:
                    await zfs("set", f"keylocation={self._key}", target)
                await place.load_key(found)
            except StorageError as error:
                self.refused = True
                raise Refused(f"the stream is encrypted: {error}") from error
        await zfs("set", f"mountpoint={self._scratch}", target)

    def _finish(self) -> Identity:
        data = self._scratch / "data"
        try:
            here = datadir.identity(data)
        except NoDatabase as error:
            raise ReceiveFailed(f"the stream held no database: {error}") from error
        datadir.check_layout(data)
        datadir.mark_restored(data)
        self._make_own(data)
        datadir.sync_directory(data)
        return here

    def _make_own(self, data: Path) -> None:
        """The sender's PostgreSQL may run as another number than ours."""
        uid, gid = (self._owner.uid, self._owner.gid) if self._owner else (os.geteuid(), os.getegid())
        if data.stat().st_uid == uid:
            return
        if os.geteuid() != 0:
            raise ReceiveFailed(
                f"the data belong to user {data.stat().st_uid} and PostgreSQL runs as {uid} here: give the peers the "
                "same numbers, or run the sitter as root"
            )
        for _, directories, files, parent in os.fwalk(self._scratch):
            for name in (*directories, *files):
                if self._given_up.is_set():
                    raise ReceiveFailed("the restore was given up")
                os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.chown(self._scratch, uid, gid)

    async def adopt(self, prefix: str) -> Path | None:
        # A cancellation does not stop it half-way: `end` waits for it.
        self._adoption = asyncio.create_task(self._place.adopt(self._target, prefix))
        old = await asyncio.shield(self._adoption)
        self.adopted = True
        return Path(old) if old else None

    async def end(self) -> None:
        """Nothing of it runs any more when this returns."""
        self._given_up.set()
        self.close()
        if self._adoption is not None:
            await asyncio.wait([self._adoption])
            self.adopted = self._adoption.exception() is None
        with contextlib.suppress(OSError):
            self._scratch.rmdir()

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.fd)


async def check_room(place: Place, seen: Picture, offer: Offer) -> None:
    """Raises NoSpace. With compression on both ends the room that the data take there says more than their stream.

    What was destroyed just now is given back little by little.
    """
    space = "" if offer.continues else offer.detail.get("space", "")
    need = offer.size if seen.parent["compression"] == "off" or not space.isdecimal() else int(space)
    free, ends = seen.parent.number("available"), time.monotonic() + FREED_WITHIN
    while need is not None and need * _ROOM > free:
        if time.monotonic() > ends or not await command.is_freeing(place.names.parent.partition("/")[0]):
            raise NoSpace(
                f"the snapshot needs about {need >> 20} MiB and {place.names.parent} has {free >> 20} MiB free"
            )
        await asyncio.sleep(_GLANCE)
        free = (await place.look()).parent.number("available")


async def prepare(place: Place, seen: Picture, offer: Offer, name: str, scratch: Path) -> Target:
    """Make what the stream is received into, as far as it can be. Raises ReceiveFailed."""
    options = {
        "mountpoint": str(scratch),
        OF: place.names.live,
        **({FROM: offer.detail["peer"]} if "peer" in offer.detail else {}),
    }
    key_place = await keylocation(seen)
    if offer.detail.get("form") == "increment":
        base = _base(seen, offer.detail.get("base", ""))
        await place.create_unmounted(name, options, seen, origin=base.name)
        await zfs("promote", name)  # its newest snapshot is the base from now on
        return Target(name, scratch, key_place)
    # A stream can be received over neither an encrypted dataset nor, if it is a raw one, over any.
    over = not (offer.detail.get("raw") == "yes" or seen.parent.encrypted)
    check_encryption(seen, encrypted=not over)
    if over:
        await place.create_unmounted(name, options, seen)
    return Target(name, scratch, key_place, over)


def _base(seen: Picture, guid: str) -> Dataset:
    """The snapshot with this guid, to build on. Raises ReceiveFailed if it is gone."""
    base = next((each for each in seen.bases() if each["guid"] == guid), None)
    if base is None:
        raise ReceiveFailed("the snapshot that the difference builds on is no longer here")
    check_encryption(seen, encrypted=seen.found[base.filesystem].encrypted)
    return base


def check_encryption(seen: Picture, *, encrypted: bool) -> None:
    """Raises ReceiveFailed if data that are encrypted would be replaced by data that are not."""
    before = seen.before
    if before is not None and before.encrypted and not encrypted:
        raise ReceiveFailed(
            f"{before.name} is encrypted and what would take its place would not be: move it below an encrypted "
            "parent (storage.dataset), or encrypt the sender's dataset and give this one a keylocation that is a file, "
            "so that the stream can be a raw one"
        )


async def keylocation(seen: Picture) -> str | None:
    """Where the key of an encrypted stream is likely to be, if ZFS can read it by itself."""
    for each in (seen.before, seen.parent):
        if each is not None and each.encrypted:
            root = seen.found.get(each["encryptionroot"])
            found = root or await command.get(each["encryptionroot"], ("keylocation",))
            if found is not None and "://" in found["keylocation"]:
                return found["keylocation"]
    return None


def scratch(state_dir: Path, target: str) -> Path:
    return state_dir / f"restoring-{target[-13:]}"


def remove_scratch(state_dir: Path) -> None:
    """The directories that a death has left; one that something is mounted on stays until that is destroyed."""
    for left in state_dir.glob("restoring-*"):
        with contextlib.suppress(OSError):
            left.rmdir()


@asynccontextmanager
async def receiving(
    interface: Interface, place: Place, offer: Offer, target: Target, owner: Account | None
) -> AsyncIterator[Receiving]:
    """Receive into `target`; when the block is left, nothing of it runs any more."""
    read, write = pipe.open_pipe()
    os.set_blocking(write, False)
    taken: Receiving | None = None
    try:
        raw = offer.detail.get("raw") == "yes"
        async with interface.receive(f"{target.name}@{offer.snapshot}", read, raw=raw, over=target.over) as moving:
            os.close(read)
            read = -1
            taken = Receiving(place, target, offer, moving, write, owner)
            try:
                yield taken
            finally:
                await asyncio.shield(asyncio.create_task(taken.end()))
    finally:
        if read >= 0:
            os.close(read)
        if taken is None:
            os.close(write)

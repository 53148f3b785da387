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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from manatee.storage import Offer, datadir, pipe
from manatee.storage.child import Account
from manatee.storage.datadir import Identity
from manatee.storage.errors import NoDatabase, NoSpace, ReceiveFailed, StorageError
from manatee.storage.zfs import command
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import ZfsError
from manatee.storage.zfs.interface import Interface, Moving
from manatee.storage.zfs.names import FROM, NO_BASE, SHARED, is_own
from manatee.storage.zfs.place import Place

_ROOM = 1.02
"""Metadata take a little more than the stream."""
_FULL = ("out of space", "no space", "quota")


class Refused(ReceiveFailed):
    """ZFS takes the stream for unusable here: asking for the same again is pointless."""


class Receiving:
    """`manatee.storage.Receiving` into `target`."""

    def __init__(
        self, place: Place, target: str, offer: Offer, moving: Moving, fd: int, owner: Account | None, state_dir: Path
    ) -> None:
        self.fd = fd
        self.adopted = False
        self.refused = False
        self._place = place
        self._target = target
        self._offer = offer
        self._sender = offer.detail.get("peer")
        self._moving = moving
        self._owner = owner
        self._scratch = scratch(state_dir, target)
        self._open = True
        self._given_up = threading.Event()
        self._adoption: asyncio.Task[str | None] | None = None

    async def complete(self) -> Identity:
        self.close()
        try:
            await self._moving.ended()
        except ZfsError as error:
            if any(sign in str(error).lower() for sign in _FULL):
                raise NoSpace(f"no space left for {self._target}: {error}") from error
            self.refused = True
            raise Refused(f"ZFS does not take the stream: {error}") from error
        return await self._check()

    async def _check(self) -> Identity:
        """Look at the data where nobody else does, and make them fit to be started."""
        place, target = self._place, self._target
        found = await command.get(target, ("canmount", "mountpoint"))
        if found is None or (found["canmount"], found["mountpoint"]) != ("noauto", str(self._scratch)):
            await place.dress(target, {"canmount": "noauto", **await place.suitable()})
            await self._load_key()
            await zfs("set", f"mountpoint={self._scratch}", target)
        try:
            await place.mount_at(target, self._scratch)
            here = await asyncio.to_thread(self._finish)
        finally:
            await asyncio.shield(asyncio.create_task(self._put_down()))
        await zfs("set", f"mountpoint={place.directory}", target)
        if self._sender:
            await zfs("set", f"{SHARED}={self._sender}", f"{target}@{self._offer.snapshot}")
        return here

    async def _put_down(self) -> None:
        await self._place.unmount(self._target)
        with contextlib.suppress(OSError):
            self._scratch.rmdir()

    async def _load_key(self) -> None:
        found = await command.get(self._target, ("keystatus", "keylocation"))
        if found is not None and found["keystatus"] == "unavailable":
            await zfs("load-key", self._target)

    def _finish(self) -> Identity:
        data = self._scratch / "data"
        try:
            here = datadir.identity(data)
        except NoDatabase as error:
            raise ReceiveFailed(f"the stream held no database: {error}") from error
        datadir.check_layout(data)
        datadir.remove_leftovers(data)
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

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.fd)


async def check_room(place: Place, offer: Offer) -> None:
    """Raises NoSpace. With compression on both ends the room that the data take there says more than their stream."""
    above = await command.get(place.names.parent, ("available", "compression"))
    if above is None:
        raise ReceiveFailed(f"{place.names.parent} does not exist: is the pool imported, and storage.dataset right?")
    space = offer.detail.get("space", "")
    need = offer.size if above["compression"] == "off" or not space.isdecimal() else int(space)
    free = above.number("available")
    if need is not None and need * _ROOM > free:
        raise NoSpace(f"the snapshot needs about {need >> 20} MiB and {place.names.parent} has {free >> 20} MiB free")


async def prepare_new(place: Place, target: str, options: Mapping[str, str], *, raw: bool) -> bool:
    """Make `target`, empty, so that what is received is written as its properties say; whether that could be done.

    A stream can be received over neither an encrypted dataset nor, if it is a raw one, over any.
    """
    above = await command.get(place.names.parent, ("encryption",))
    if raw or (above is not None and above["encryption"] not in ("-", "off")):
        return False
    await zfs("create", *_options(options), target)
    return True


async def prepare_base(place: Place, target: str, options: Mapping[str, str], guid: str) -> None:
    """Make `target` a dataset whose newest snapshot is the one with this guid. Raises ReceiveFailed if it is gone."""
    base = await find_base(place, guid)
    if base is None:
        raise ReceiveFailed("the snapshot that the difference builds on is no longer here")
    await zfs("clone", *_options(options), base.name, target)
    await zfs("promote", target)


def scratch(state_dir: Path, target: str) -> Path:
    """Where what is being received is looked at: nobody else's business, and not in the way of the live data."""
    return state_dir / f"restoring-{target[-13:]}"


def remove_scratch(state_dir: Path) -> None:
    """The directories that a death has left; one that something is mounted on stays until that is destroyed."""
    for left in state_dir.glob("restoring-*"):
        with contextlib.suppress(OSError):
            left.rmdir()


async def options_for(place: Place, target: str, state_dir: Path, sender: str | None) -> dict[str, str]:
    """The properties of what is being received."""
    options = {**await place.suitable(), "canmount": "noauto", "mountpoint": str(scratch(state_dir, target))}
    return {**options, FROM: sender} if sender else options


def _options(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


async def find_base(place: Place, guid: str) -> Dataset | None:
    """Where the snapshot with this guid is."""
    return next((each for each in await bases(place) if each["guid"] == guid), None)


async def bases(place: Place) -> list[Dataset]:
    """Our own snapshots that a difference may build on, the newest first."""
    live = await place.live()
    holders = [each for each in (live, *await place.isolated()) if each is not None and not each.local(NO_BASE)]
    found = [each for holder in holders for each in await place.snapshots(holder.name) if is_own(each.snapshot)]
    return sorted(found, key=lambda each: each.snapshot, reverse=True)


@asynccontextmanager
async def receiving(
    interface: Interface, place: Place, offer: Offer, target: str, *, over: bool, owner: Account | None, state_dir: Path
) -> AsyncIterator[Receiving]:
    """Receive into `target`; when the block is left, nothing of it runs any more."""
    read, write = pipe.open_pipe()
    os.set_blocking(write, False)
    taken: Receiving | None = None
    try:
        raw = offer.detail.get("raw") == "yes"
        async with interface.receive(f"{target}@{offer.snapshot}", read, raw=raw, over=over) as moving:
            os.close(read)
            read = -1
            taken = Receiving(place, target, offer, moving, write, owner, state_dir)
            try:
                yield taken
            finally:
                await asyncio.shield(asyncio.create_task(taken.end()))
    finally:
        if read >= 0:
            os.close(read)
        if taken is None:
            os.close(write)


async def leave(place: Place, target: str) -> None:
    """Take away what was not adopted; what cannot be is for `clear_leftovers`."""
    with contextlib.suppress(StorageError):
        await place.destroy(target)

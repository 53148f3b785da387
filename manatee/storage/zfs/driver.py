"""`Storage` on ZFS: puts the parts of this package together, and decides nothing that they do not say."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import structlog

from manatee.config import Settings
from manatee.storage import Dropped, Offer, Sending, Snapshot, datadir
from manatee.storage import Receiving as ReceivingProtocol
from manatee.storage.child import account
from manatee.storage.datadir import Identity
from manatee.storage.errors import NoDatabase, ReceiveFailed, StorageError, UnsupportedLayout
from manatee.storage.localserver import wal_kept
from manatee.storage.zfs import command, properties, receiving
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import Busy, HasClones, Missing, ZfsError
from manatee.storage.zfs.interface import Interface, Option, Order, choose
from manatee.storage.zfs.names import FROM, KEPT, SHARED, TAKEN_FOR, Names, is_own, new_name
from manatee.storage.zfs.picture import Picture
from manatee.storage.zfs.place import Place
from manatee.storage.zfs.receiving import Target
from manatee.storage.zfs.sending import (
    asking,
    base_for,
    guess,
    guess_difference,
    offered,
    options_for,
    read_token,
    resumable,
    sending,
)

KEPT_FOR = 3600.0
"""Seconds for which a receiver whose stream was cut can go on with it, whatever the snapshotter would drop."""
WORTH_RESUMING = 16 << 20
"""Bytes of a cut stream below which it is not kept: so much waits on the way, or in the receiving ZFS, and is lost."""
MOST_GUIDS = 100
"""Snapshots that are told to a sender: they go into the address of a request."""


class Zfs:
    """`Storage` of a dataset mounted at `<directory>`, with `data/` in it."""

    driver = "zfs"
    keeps_snapshots = True

    def __init__(self, settings: Settings) -> None:
        assert settings.storage.dataset is not None
        self._settings = settings
        self._log = structlog.get_logger(storage=self.driver)  # bound when used: logging may not be set up yet
        self._owner = account(settings.postgres.user)
        self._names = Names(settings.storage.dataset)
        self._place = Place(self._names, settings.storage.directory, self._owner, self._log)
        self._interface: Interface | None = None
        self._choosing = asyncio.Lock()
        self._advice: list[str] = []
        self._plainly = False
        """The last stream was refused by our ZFS: the next is asked for whole and without options."""

    @property
    def data_dir(self) -> Path:
        return self._settings.storage.data_dir

    @property
    def detail(self) -> Mapping[str, object]:
        chosen = self._interface.name if self._interface else None
        return {"dataset": self._names.live, "interface": chosen, "advice": list(self._advice)}

    # --- The live data ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self._open()

    async def _open(self) -> Picture:
        await self._ready()
        seen = await self._place.open()
        advice = properties.advice(seen.live) if seen.live else []
        for sentence in advice:
            if sentence not in self._advice:
                self._log.warning(sentence)
        self._advice = advice
        return seen

    async def prepare(self) -> None:
        seen = await self._open()
        if seen.live is None:
            await self._place.create(seen)
        await asyncio.to_thread(self._place.own_directory)

    async def has_data(self) -> bool:
        mounted = await self._place.is_mounted(await self._place.look())
        return mounted and await asyncio.to_thread(datadir.has_database, self.data_dir)

    async def identity(self) -> Identity:
        await self._live()
        return await asyncio.to_thread(datadir.identity, self.data_dir)

    async def estimate(self) -> int:
        _, live = await self._checked()
        return await asyncio.to_thread(guess, self.data_dir, live)

    async def _live(self) -> tuple[Picture, Dataset]:
        """Raises NoDatabase unless it is mounted."""
        seen = await self._place.look()
        if seen.live is None:
            raise NoDatabase(f"there is no dataset {self._names.live}")
        if not await self._place.is_mounted(seen):
            raise NoDatabase(f"{self._names.live} is not mounted at {self._settings.storage.directory}")
        return seen, seen.live

    async def _checked(self) -> tuple[Picture, Dataset]:
        """What can be sent. Raises NoDatabase, UnsupportedLayout."""
        seen, live = await self._live()
        seen.check_alone()
        await asyncio.to_thread(datadir.check_whole, self._settings)
        await asyncio.to_thread(_check_one_filesystem, self.data_dir)
        return seen, live

    async def _ready(self) -> Interface:
        async with self._choosing:
            if self._interface is None:
                self._interface = await choose(self._settings.storage.zfs_interface, self._names, self._log)
                self._log.info("ZFS is used", interface=self._interface.name, dataset=self._names.live)
            return self._interface

    # --- Sending ------------------------------------------------------------------------------------------------

    def send(self, wanted: Mapping[str, str]) -> AbstractAsyncContextManager[Sending]:
        return self._send(wanted)

    @asynccontextmanager
    async def _send(self, wanted: Mapping[str, str]) -> AsyncIterator[Sending]:
        async with wal_kept(self._settings), self._sent(wanted) as stream:
            yield stream

    @asynccontextmanager
    async def _sent(self, wanted: Mapping[str, str]) -> AsyncIterator[Sending]:
        if wanted.get("driver", self.driver) != self.driver:
            raise StorageError(f"this peer's storage is {self.driver}, the request is for {wanted['driver']}")
        interface = await self._ready()
        seen, live = await self._checked()
        identity = await asyncio.to_thread(datadir.identity, self.data_dir)
        order = await self._rest(wanted, seen, interface)
        if order is None:
            order = await self._fresh(wanted, seen, live, interface)
        moved, complete = 0, False
        try:
            seen = await self._place.look()
            if seen.live is None or order.snapshot not in seen.found:
                raise NoDatabase(f"{order.snapshot} is no longer there")
            needed = [seen.found[name] for name in (order.snapshot, order.base) if name and name in seen.found]
            async with interface.held(*needed):
                offer = await self._offer(order, seen, seen.live, identity, interface)
                async with sending(interface, order, offer, self._settings.backup.idle_timeout) as stream:
                    try:
                        yield stream
                        complete = stream.complete
                    finally:
                        moved = stream.moved
        finally:
            keep = order.token is not None or (resumable(wanted) and moved >= WORTH_RESUMING)
            await asyncio.shield(asyncio.create_task(self._after(order, wanted, complete=complete, keep=keep)))

    async def _rest(self, wanted: Mapping[str, str], seen: Picture, interface: Interface) -> Order | None:
        """The rest of a stream that was cut, if its snapshot is still here, and that which it builds on."""
        token = wanted.get("token")
        cut = await read_token(token) if token and interface.resumable else None
        if token is None or cut is None:
            return None
        here = {each["guid"]: each for each in seen.snapshots(self._names.live)}
        sent, base = here.get(cut.guid), here.get(cut.base) if cut.base else None
        if sent is None or sent.name != cut.snapshot or (cut.base and base is None):
            return None
        raw: frozenset[Option] = frozenset({"raw"} if cut.raw else ())
        return Order(sent.name, base.name if base else None, raw, token)

    async def _fresh(self, wanted: Mapping[str, str], seen: Picture, live: Dataset, interface: Interface) -> Order:
        """A snapshot of now, and what to send of it."""
        await self._forget_cut(wanted, seen, interface)
        before = seen.snapshots(self._names.live)
        base = base_for(wanted, before)
        options = options_for(wanted, live, base, interface.options)
        taken_for = {**_kept(), TAKEN_FOR: asking(wanted)} if resumable(wanted) else {}
        snapshot = await self._snapshot(before, interface, taken_for)
        return Order(snapshot, base.name if base else None, options)

    async def _forget_cut(self, wanted: Mapping[str, str], seen: Picture, interface: Interface) -> None:
        """Who asks for a new stream goes on with none that was cut before. What has arrived all the same is a base."""
        for each in seen.unfinished:
            theirs = each.local(TAKEN_FOR) == asking(wanted) and base_for(wanted, [each]) is None
            if theirs and not each.number("userrefs"):  # zfs-fuse would have us wait for the end of the stream
                with contextlib.suppress(ZfsError):
                    await interface.destroy_snapshot(each.name)

    async def _offer(
        self, order: Order, seen: Picture, live: Dataset, identity: Identity, interface: Interface
    ) -> Offer:
        sent, base = seen.found[order.snapshot], seen.found.get(order.base or "")
        size = await interface.estimate(order)
        if size is None and order.token is None:
            if base is None:
                size = await asyncio.to_thread(guess, self.data_dir, live)
            else:
                size = guess_difference(live, seen.snapshots(self._names.live), sent, base)
        here = self._settings.identity.id
        return offered(order, identity, size, sent=sent, base=base, peer=here, encrypted=live.encrypted)

    async def _after(self, order: Order, wanted: Mapping[str, str], *, complete: bool, keep: bool) -> None:
        """What was sent is what the two peers have in common; what was not, nobody has, unless it can be gone on with.

        Then it is kept for a while, with what it builds on: the snapshotter must not take it meanwhile.
        """
        with contextlib.suppress(ZfsError):
            if complete:
                if peer := asking(wanted):
                    await zfs("set", f"{SHARED}={peer}", order.snapshot)
                if order.token is not None or resumable(wanted):
                    await zfs("inherit", KEPT, order.snapshot)
            elif keep:
                for snapshot in filter(None, (order.base, order.snapshot)):
                    await zfs("set", *(f"{name}={value}" for name, value in _kept().items()), snapshot)
            elif self._interface is not None:
                await self._interface.destroy_snapshot(order.snapshot)

    # --- Receiving ----------------------------------------------------------------------------------------------

    async def related(self) -> frozenset[str]:
        seen = await self._place.look()
        if seen.partial is not None and (sender := seen.partial.local(FROM)):
            return frozenset({sender})  # nobody else can go on with it
        shared = (each.local(SHARED) for each in seen.bases())
        return frozenset(peer for peer in shared if peer)

    async def wanted(self) -> Mapping[str, str]:
        interface = await self._ready()
        wanted = {"driver": self.driver, "peer": self._settings.identity.id}
        if self._plainly:
            return wanted
        seen = await self._place.look()
        bases = seen.bases()[:MOST_GUIDS]
        if bases:
            wanted["guids"] = ",".join(each["guid"] for each in bases)
        if ivsets := [each["ivsetguid"] for each in bases if each.number("ivsetguid")]:
            wanted["ivsets"] = ",".join(ivsets)
        if seen.partial is not None and interface.resumable:
            wanted["token"] = seen.partial["receive_resume_token"]
        if accepts := await self._accepts(seen, interface):
            wanted["accepts"] = ",".join(accepts)
        if interface.resumable:
            wanted["resumable"] = "yes"
        return wanted

    async def _accepts(self, seen: Picture, interface: Interface) -> list[str]:
        """What the streams for this pool may hold: what is switched on in the pool, and what it has the key for."""
        on = await command.features(self._names.live.partition("/")[0])
        needs: dict[Option, str] = {"large": "large_blocks", "embedded": "embedded_data", "compressed": "lz4_compress"}
        if seen.parent.encrypted or (seen.before is not None and seen.before.encrypted):
            del needs["embedded"]  # zfs-receive(8): such a stream cannot be received into an encrypted dataset
        accepts: list[str] = [
            option for option, feature in needs.items() if feature in on and option in interface.options
        ]
        if accepts and "zstd_compress" in on:
            accepts.append("zstd")
        if "encryption" in on and "raw" in interface.options and await receiving.keylocation(seen) is not None:
            accepts.append("raw")
        return accepts

    def receive(self, offer: Offer) -> AbstractAsyncContextManager[ReceivingProtocol]:
        return self._receive(offer)

    @asynccontextmanager
    async def _receive(self, offer: Offer) -> AsyncIterator[ReceivingProtocol]:
        if offer.driver != self.driver:
            raise ReceiveFailed(f"the stream is of the {offer.driver} driver, the storage here is {self.driver}")
        if not is_own(offer.snapshot):
            raise ReceiveFailed(f'the snapshot in the stream is called "{offer.snapshot}", not by the time')
        interface = await self._ready()
        seen = await self._place.open()
        seen.check_alone()
        partial = seen.partial if offer.detail.get("form") == "rest" else None
        if partial is None and offer.detail.get("form") == "rest":
            raise ReceiveFailed("what the rest of the stream belongs to is no longer here")
        # What is left of another restore must not take the room.
        if await self._place.clear(seen, spare=partial.name if partial else None):
            seen = await self._place.look()
        await receiving.check_room(self._place, seen, offer)
        name = partial.name if partial else self._names.new_restoring()
        taken: receiving.Receiving | None = None
        try:
            target = await self._target(name, seen, offer, partial)
            async with receiving.receiving(interface, self._place, offer, target, self._owner) as taken:
                yield taken
        finally:
            if taken is None or not taken.adopted:
                before = partial["receive_resume_token"] if partial else None
                await asyncio.shield(asyncio.create_task(self._give_up(name, before, taken)))
            else:
                self._plainly = False

    async def _target(self, name: str, seen: Picture, offer: Offer, partial: Dataset | None) -> Target:
        scratch = receiving.scratch(self._settings.sitter.state_dir, name)
        if partial is not None:
            # As when it was begun: received over what was made for it. (Without, OpenZFS takes no rest of it: 1047.)
            over = partial["mountpoint"] == str(scratch) and not seen.snapshots(name)
            return Target(name, scratch, await receiving.keylocation(seen), over)
        if offer.detail.get("encrypted") == "yes" and not (seen.parent.encrypted or offer.detail.get("raw") == "yes"):
            self._log.warning("the sender's data are encrypted, and these will not be", parent=self._names.parent)
        return await receiving.prepare(self._place, seen, offer, name, scratch)

    async def _give_up(self, target: str, token: str | None, taken: receiving.Receiving | None) -> None:
        """Keep what can be gone on from, unless going on has brought nothing, or it takes all the room there is.

        What an adoption has left half done is finished, or undone: what cannot be now is for `clear_leftovers`.
        """
        self._plainly = taken is not None and taken.refused
        with contextlib.suppress(StorageError):
            await self._place.open()
        with contextlib.suppress(StorageError):
            partial = (await self._place.look()).partial
            kept = partial is not None and partial.name == target and partial["receive_resume_token"] != token
            if kept and not (taken is not None and taken.full):
                self._plainly = False
                return
            await self._place.destroy(target)

    async def release_stale(self) -> int:
        interface = await self._ready()
        held = await interface.release_stale()
        if held:
            self._log.warning("released what a process that is gone had held", holds=held)
        return held

    # --- What is kept -------------------------------------------------------------------------------------------

    async def isolate(self, prefix: str, *, base: bool = True) -> Path | None:
        # What is left of a restore must not become live by itself when these data have made way.
        await self.clear_leftovers(resumable=not base)
        seen = await self._open()
        if not base:
            await self._place.forbid_bases(seen)
        if seen.live is None or not await asyncio.to_thread(datadir.has_database, self.data_dir):
            return None
        return Path(await self._place.isolate(seen, prefix))

    async def drop_isolated(self, keep: int) -> Dropped:
        return await self._place.drop_isolated(keep)

    async def clear_leftovers(self, *, resumable: bool = False) -> int:
        await self.release_stale()
        seen = await self._place.open()
        partial = None if resumable else seen.partial
        cleared = await self._place.clear(seen, spare=partial.name if partial else None)
        await asyncio.to_thread(receiving.remove_scratch, self._settings.sitter.state_dir)
        return cleared

    async def snapshots(self) -> Sequence[Snapshot]:
        seen = await self._place.look()
        until = {
            each.name: math.inf if each.number("userrefs") else float(each.number(KEPT))  # held: it is being sent
            for each in seen.unfinished
        }
        return [
            Snapshot(
                each.snapshot, int(each.snapshot) / 1000, each.number("used"), each.local(SHARED), until.get(each.name)
            )
            for each in seen.snapshots(self._names.live)
            if is_own(each.snapshot)
        ]

    async def take_snapshot(self) -> Snapshot:
        interface = await self._ready()
        seen, _ = await self._checked()
        name = await self._snapshot(seen.snapshots(self._names.live), interface, {})
        return Snapshot(name.rpartition("@")[2], time.time(), 0)

    async def drop_snapshot(self, name: str) -> None:
        if not is_own(name):
            raise StorageError(f"{name} is not Manatee's snapshot: it stays")
        interface = await self._ready()
        found = await command.get(f"{self._names.live}@{name}", ("userrefs", KEPT))
        if found is not None and found.number("userrefs"):  # zfs-fuse would have us wait for the end of the stream
            raise StorageError(f"{name} is held (zfs holds), or being sent")
        if found is not None and found.number(KEPT) > time.time():
            raise StorageError(f"{name} is kept for a peer whose stream was cut, to go on with")
        try:
            await interface.destroy_snapshot(f"{self._names.live}@{name}")
        except Missing:
            return
        except Busy as error:
            raise StorageError(f"{name} is held, or being sent: {error}") from error
        except HasClones as error:
            raise StorageError(f"{name} was cloned: {error}") from error

    async def _snapshot(self, before: Sequence[Dataset], interface: Interface, properties: Mapping[str, str]) -> str:
        """Its full name. Raises NoDatabase, UnsupportedLayout if the data have ceased to be whole meanwhile."""
        own = [each.snapshot for each in before if is_own(each.snapshot)]
        name = f"{self._names.live}@{new_name(max(own, default=None))}"
        await interface.snapshot(name, properties)
        try:
            await asyncio.to_thread(datadir.check_whole, self._settings)
        except StorageError:
            try:
                await interface.destroy_snapshot(name)
            except ZfsError as error:
                self._log.warning("a snapshot that holds no database stays", snapshot=name, reason=str(error))
            raise
        return name


def _kept() -> dict[str, str]:
    """What keeps a snapshot from being dropped as long as the stream of it may be gone on with, should it be cut."""
    return {KEPT: f"{time.time() + KEPT_FOR:.0f}"}


def _check_one_filesystem(data_dir: Path) -> None:
    """Raises UnsupportedLayout if any of it lies on another filesystem: the snapshot would not be one moment."""
    here = data_dir.stat().st_dev
    for directory in (data_dir, data_dir / "pg_tblspc"):
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for each in entries:
                if each.is_dir(follow_symlinks=False) and each.stat(follow_symlinks=False).st_dev != here:
                    raise UnsupportedLayout(f"{each.path} is another filesystem: the data must be in one dataset")

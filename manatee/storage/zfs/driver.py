"""`Storage` on ZFS: puts the parts of this package together, and decides nothing that they do not say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import structlog

from manatee.config import Settings
from manatee.storage import Offer, Sending, Snapshot, datadir
from manatee.storage import Receiving as ReceivingProtocol
from manatee.storage.child import account
from manatee.storage.datadir import Identity
from manatee.storage.errors import NoDatabase, ReceiveFailed, StorageError, UnsupportedLayout
from manatee.storage.zfs import command, properties, receiving
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import Busy, HasClones, Missing, ZfsError
from manatee.storage.zfs.interface import Interface, Order, choose
from manatee.storage.zfs.names import FROM, SHARED, Names, is_own, new_name
from manatee.storage.zfs.place import Place
from manatee.storage.zfs.sending import base_for, guess, offered, options_for, read_token, sending

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
        await self._ready()
        if await self._place.open():
            live = await self._place.live()
            advice = properties.advice(live) if live else []
            for sentence in advice:
                if sentence not in self._advice:
                    self._log.warning(sentence)
            self._advice = advice

    async def prepare(self) -> None:
        await self.open()
        if await self._place.live() is None:
            await self._place.create()
        await asyncio.to_thread(self._place.own_directory)

    async def has_data(self) -> bool:
        return await self._place.is_mounted() and await asyncio.to_thread(datadir.has_database, self.data_dir)

    async def identity(self) -> Identity:
        await self._live()
        return await asyncio.to_thread(datadir.identity, self.data_dir)

    async def estimate(self) -> int:
        live = await self._checked()
        return guess(live, [], live, None)

    async def _live(self) -> Dataset:
        """Raises NoDatabase unless it is mounted."""
        live = await self._place.live()
        if live is None:
            raise NoDatabase(f"there is no dataset {self._names.live}")
        if not await self._place.is_mounted():
            raise NoDatabase(f"{self._names.live} is not mounted at {self._settings.storage.directory}")
        return live

    async def _checked(self) -> Dataset:
        """Raises NoDatabase, UnsupportedLayout."""
        live = await self._live()
        await self._place.check_alone()
        await asyncio.to_thread(_check_layout, self.data_dir)
        return live

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
        if wanted.get("driver", self.driver) != self.driver:
            raise StorageError(f"this peer's storage is {self.driver}, the request is for {wanted['driver']}")
        interface = await self._ready()
        live = await self._checked()
        identity = await asyncio.to_thread(datadir.identity, self.data_dir)
        order = await self._rest(wanted, interface)
        new = order is None
        if order is None:
            order = await self._fresh(wanted, live, interface)
        complete = False
        try:
            async with interface.held(order.snapshot):
                offer = await self._offer(order, live, identity, interface)
                async with sending(interface, order, offer, self._settings.backup.idle_timeout) as stream:
                    yield stream
                    complete = stream.complete
        finally:
            keep = not new or "resumable" in wanted
            sent_to = wanted.get("peer", "") if complete else None
            await asyncio.shield(asyncio.create_task(self._after(order, sent_to, keep=keep)))

    async def _rest(self, wanted: Mapping[str, str], interface: Interface) -> Order | None:
        """The rest of a stream that was cut, if its snapshot is still here."""
        token = wanted.get("token")
        cut = await read_token(token) if token and interface.resumable else None
        if cut is None:
            return None
        here = await self._place.snapshots(self._names.live)
        found = next((each for each in here if each["guid"] == cut.guid and each.name == cut.snapshot), None)
        return Order(found.name, token=token) if found else None

    async def _fresh(self, wanted: Mapping[str, str], live: Dataset, interface: Interface) -> Order:
        """A snapshot of now, and what to send of it."""
        before = await self._place.snapshots(self._names.live)
        base = base_for(wanted, before)
        snapshot = await self._snapshot(before, interface)
        options = options_for(wanted, live, interface.options)
        return Order(snapshot, base.name if base else None, options)

    async def _offer(self, order: Order, live: Dataset, identity: Identity, interface: Interface) -> Offer:
        snapshots = await self._place.snapshots(self._names.live)
        sent = next(each for each in snapshots if each.name == order.snapshot)
        base = next((each for each in snapshots if each.name == order.base), None)
        guessed = guess(live, snapshots, sent, base)
        size = await interface.estimate(order)
        space = sent.number("referenced") if base is None else None
        here = self._settings.identity.id
        return offered(order, identity, guessed if size is None else size, space=space, base=base, peer=here)

    async def _after(self, order: Order, sent_to: str | None, *, keep: bool) -> None:
        """What was sent is what the two peers have in common; what was not, nobody has."""
        with contextlib.suppress(ZfsError):
            if sent_to is not None:
                if re.fullmatch(r"[0-9A-Za-z.:]{1,100}", sent_to):
                    await zfs("set", f"{SHARED}={sent_to}", order.snapshot)
            elif not keep and self._interface is not None:
                await self._interface.destroy_snapshot(order.snapshot)

    # --- Receiving ----------------------------------------------------------------------------------------------

    async def related(self) -> frozenset[str]:
        partial = await self._partial()
        if partial is not None and (sender := partial.local(FROM)):
            return frozenset({sender})  # nobody else can go on with it
        shared = (each.local(SHARED) for each in await receiving.bases(self._place))
        return frozenset(peer for peer in shared if peer)

    async def wanted(self) -> Mapping[str, str]:
        interface = await self._ready()
        wanted = {"driver": self.driver, "peer": self._settings.identity.id}
        if self._plainly:
            return wanted
        guids = [each["guid"] for each in await receiving.bases(self._place)]
        if guids:
            wanted["guids"] = ",".join(guids[:MOST_GUIDS])
        partial = await self._partial()
        if partial is not None and interface.resumable:
            wanted["token"] = partial["receive_resume_token"]
        accepts = await self._accepts(interface)
        if accepts:
            wanted["accepts"] = ",".join(accepts)
        if interface.resumable:
            wanted["resumable"] = "yes"
        return wanted

    async def _accepts(self, interface: Interface) -> list[str]:
        """What the streams for this pool may hold: what is switched on in the pool."""
        on = await command.features(self._names.live.partition("/")[0])
        needs = {"large": "large_blocks", "embedded": "embedded_data", "compressed": "lz4_compress"}
        accepts = [option for option, feature in needs.items() if feature in on and option in interface.options]
        return accepts + (["zstd"] if accepts and "zstd_compress" in on else [])

    async def _partial(self) -> Dataset | None:
        """What a stream that was cut has left to go on from."""
        found = [each for each in await self._place.restoring() if each["receive_resume_token"] not in ("-", "")]
        return found[-1] if found else None

    def receive(self, offer: Offer) -> AbstractAsyncContextManager[ReceivingProtocol]:
        return self._receive(offer)

    @asynccontextmanager
    async def _receive(self, offer: Offer) -> AsyncIterator[ReceivingProtocol]:
        if offer.driver != self.driver:
            raise ReceiveFailed(f"the stream is of the {offer.driver} driver, the storage here is {self.driver}")
        if not is_own(offer.snapshot):
            raise ReceiveFailed(f'the snapshot in the stream is called "{offer.snapshot}", not by the time')
        interface = await self._ready()
        if await self._place.live() is not None:
            await self._place.check_alone()
        await receiving.check_room(self._place, offer)
        partial = await self._partial() if offer.detail.get("form") == "rest" else None
        if partial is None and offer.detail.get("form") == "rest":
            raise ReceiveFailed("what the rest of the stream belongs to is no longer here")
        await self._place.clear(spare=partial.name if partial else None)
        target = partial.name if partial else self._names.new_restoring()
        taken: receiving.Receiving | None = None
        try:
            over, state_dir = False, self._settings.sitter.state_dir
            if partial is None:
                sender = offer.detail.get("peer")
                options = await receiving.options_for(self._place, target, state_dir, sender)
                if offer.detail.get("form") == "increment":
                    await receiving.prepare_base(self._place, target, options, offer.detail.get("base", ""))
                else:
                    raw = offer.detail.get("raw") == "yes"
                    over = await receiving.prepare_new(self._place, target, options, raw=raw)
            stream = receiving.receiving(
                interface, self._place, offer, target, over=over, owner=self._owner, state_dir=state_dir
            )
            async with stream as taken:
                yield taken
        finally:
            if taken is None or not taken.adopted:
                before = partial["receive_resume_token"] if partial else None
                await asyncio.shield(asyncio.create_task(self._give_up(target, before, taken)))
            else:
                self._plainly = False

    async def _give_up(self, target: str, token: str | None, taken: receiving.Receiving | None) -> None:
        """Keep what can be gone on from, unless going on has brought nothing; take the rest away."""
        with contextlib.suppress(StorageError):
            partial = await self._partial()
            if partial is not None and partial.name == target and partial["receive_resume_token"] != token:
                return
        self._plainly = taken is not None and taken.refused
        await receiving.leave(self._place, target)

    async def release_stale(self) -> int:
        interface = await self._ready()
        held = await interface.release_stale()
        if held:
            self._log.warning("released what a process that is gone had held", holds=held)
        return held

    # --- What is kept -------------------------------------------------------------------------------------------

    async def isolate(self, prefix: str, *, base: bool = True) -> Path | None:
        await self.open()
        if not base:
            await self.clear_leftovers(resumable=True)
            await self._place.forbid_bases()
        if await self._place.live() is None or not await self.has_data():
            return None
        target = await self._place.isolate(prefix, base=base)
        return Path(target) if target else None

    async def drop_isolated(self, keep: int) -> int:
        return await self._place.drop_isolated(keep)

    async def clear_leftovers(self, *, resumable: bool = False) -> int:
        await self.release_stale()
        await self._place.open()
        partial = None if resumable else await self._partial()
        cleared = await self._place.clear(spare=partial.name if partial else None)
        await asyncio.to_thread(receiving.remove_scratch, self._settings.sitter.state_dir)
        return cleared

    async def snapshots(self) -> Sequence[Snapshot]:
        found = await self._place.snapshots(self._names.live)
        return [
            Snapshot(each.snapshot, int(each.snapshot) / 1000, each.number("used"), each.local(SHARED))
            for each in found
            if is_own(each.snapshot)
        ]

    async def take_snapshot(self) -> Snapshot:
        interface = await self._ready()
        await self._checked()
        name = await self._snapshot(await self._place.snapshots(self._names.live), interface)
        return Snapshot(name.rpartition("@")[2], time.time(), 0)

    async def drop_snapshot(self, name: str) -> None:
        if not is_own(name):
            raise StorageError(f"{name} is not Manatee's snapshot: it stays")
        interface = await self._ready()
        found = await command.get(f"{self._names.live}@{name}", ("userrefs",))
        if found is not None and found.number("userrefs"):  # zfs-fuse would have us wait for the end of the stream
            raise StorageError(f"{name} is held (zfs holds), or being sent")
        try:
            await interface.destroy_snapshot(f"{self._names.live}@{name}")
        except Missing:
            return
        except Busy as error:
            raise StorageError(f"{name} is held, or being sent: {error}") from error
        except HasClones as error:
            raise StorageError(f"{name} was cloned: {error}") from error

    async def _snapshot(self, before: Sequence[Dataset], interface: Interface) -> str:
        own = [each.snapshot for each in before if is_own(each.snapshot)]
        name = f"{self._names.live}@{new_name(max(own, default=None))}"
        await interface.snapshot(name)
        return name


def _check_layout(data_dir: Path) -> None:
    """Raises UnsupportedLayout if any of it lies on another filesystem: the snapshot would not be one moment."""
    datadir.check_layout(data_dir)
    here = data_dir.stat().st_dev
    for directory in (data_dir, data_dir / "pg_tblspc"):
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for each in entries:
                if each.is_dir(follow_symlinks=False) and each.stat(follow_symlinks=False).st_dev != here:
                    raise UnsupportedLayout(f"{each.path} is another filesystem: the data must be in one dataset")

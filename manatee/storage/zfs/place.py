"""The datasets of one peer and the steps between them; killed after any of them, the next start goes on.

    adopt:    mark the complete dataset, unmount and rename the live one away, rename the other to its name, mount
    open:     a marked dataset and no live one: the renames were cut short, so the second is done now; then mount
    destroy:  what still depends on the doomed dataset is promoted first, if it is ours; never with `-R`

Of one ZFS dataset always exactly one is to be found under the live name, or one that `open` gives it, or none and the
old one is isolated. Nothing is mounted over files, and no mountpoint is inherited.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from manatee.log import Logger
from manatee.storage import Dropped
from manatee.storage.child import Account
from manatee.storage.errors import StorageError
from manatee.storage.zfs import command, picture
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import Busy, Denied, Exists, HasClones, Missing, ZfsError
from manatee.storage.zfs.names import ADOPTING, NO_BASE, OF, Names, is_own
from manatee.storage.zfs.picture import Picture
from manatee.storage.zfs.properties import NEW, carried


class Place:
    """The names, and what is done with them. Of several processes only the sitter, or rebuild, changes anything."""

    def __init__(self, names: Names, directory: Path, owner: Account | None, log: Logger) -> None:
        self.names = names
        self.directory = directory
        self._owner = owner
        self._log = log
        self._staying: dict[str, str] = {}
        """What could not be destroyed so far, and why."""

    # --- Looking ------------------------------------------------------------------------------------------------

    async def look(self) -> Picture:
        """Raises StorageError if it cannot be known what there is."""
        return await picture.look(self.names)

    async def is_mounted(self, seen: Picture) -> bool:
        """Whether the live dataset is there and where it belongs."""
        live = seen.live
        if live is None or live["mounted"] != "yes" or live["mountpoint"] != str(self.directory):
            return False
        return await asyncio.to_thread(_is_root_of_a_filesystem, self.directory)

    # --- Making it reachable ------------------------------------------------------------------------------------

    async def open(self) -> Picture:
        """Finish what a death has interrupted, and mount; what there is then. Raises StorageError."""
        seen = await self.look()
        if seen.adopting is not None:
            self._log.warning("going on where a restore was cut short", dataset=seen.adopting.name)
            await self._take_name(seen.adopting)
            return await self.look()
        if seen.live is not None and not await self.is_mounted(seen):
            await self.mount(seen.live)
            return await self.look()
        return seen

    async def create(self, seen: Picture) -> None:
        """A new dataset, mounted; with what suits a database where the operator has said nothing above it."""
        await self._check_free(self.names.live)
        await self.create_unmounted(self.names.live, {"mountpoint": str(self.directory)}, seen)
        self._log.info("dataset created", dataset=self.names.live)
        await self.mount_at(self.names.live, self.directory)

    async def create_unmounted(
        self, dataset: str, options: Mapping[str, str], seen: Picture, *, origin: str | None = None
    ) -> None:
        """A new dataset, or a clone of the snapshot `origin`: with these options, and as far as may be what suits it.

        One property that is not permitted makes the whole command fail: then it is made with those alone that it cannot
        do without, and the others are set one by one.
        """
        essential, suitable = {"canmount": "noauto", **options}, await self.suitable(seen)

        async def make(properties: Mapping[str, str]) -> None:
            words = [word for name, value in properties.items() for word in ("-o", f"{name}={value}")]
            await zfs(*(["create", *words] if origin is None else ["clone", *words, origin]), dataset)

        try:
            await make({**suitable, **essential})
        except Denied:
            await make(essential)
            await self.dress(dataset, suitable)

    async def suitable(self, seen: Picture) -> dict[str, str]:
        """The properties of a new dataset: those of the one that it follows, else what suits a database."""
        if seen.before is not None:
            return carried(await command.local(seen.before.name))
        above = await command.get(self.names.parent, NEW)
        return {name: value for name, value in NEW.items() if above is None or above.is_default(name)}

    async def mount(self, live: Dataset) -> None:
        """Mount it at the directory. Raises StorageError, with what to do."""
        if live["mountpoint"] != str(self.directory):
            raise StorageError(
                f"{live.name} has the mountpoint {live['mountpoint']} and storage.directory is {self.directory}: "
                f"zfs set mountpoint={self.directory} {live.name}, or correct the setting"
            )
        if live["mounted"] == "yes":
            raise StorageError(f"{live.name} is mounted, but {self.directory} is not its root for this process")
        await self._check_free(live.name)
        if not live.readable:
            await self.load_key(live)
        await self.mount_at(live.name, self.directory)

    async def _check_free(self, dataset: str) -> None:
        if await asyncio.to_thread(_holds_files, self.directory):
            raise StorageError(
                f"{dataset} is not mounted and {self.directory} holds files: move them away, they would be hidden"
            )

    async def load_key(self, dataset: Dataset) -> None:
        """Raises StorageError, with what to do, unless the key is where ZFS can read it."""
        root = dataset["encryptionroot"] if dataset["encryptionroot"] != "-" else dataset.name
        try:
            await zfs("load-key", root)
        except ZfsError as error:
            raise StorageError(
                f"the key of {root} cannot be loaded ({error}): zfs load-key {root}, or let its keylocation be a file"
            ) from error

    async def mount_at(self, dataset: str, directory: Path) -> None:
        """Mount where its mountpoint already says."""
        try:
            await zfs("mount", dataset)
        except Denied as error:
            raise Denied(f"{error}: mounting is for root here (docs/storage.md, Delegation)") from error
        except ZfsError as error:
            found = await command.get(dataset, ("mounted",))
            if "already mounted" not in str(error) or found is None or found["mounted"] != "yes":
                raise
        if not await asyncio.to_thread(_is_root_of_a_filesystem, directory):
            raise StorageError(f"{dataset} was mounted, but {directory} is not its root: another mount hides it")

    # --- The renames --------------------------------------------------------------------------------------------

    async def adopt(self, complete: str, prefix: str) -> str | None:
        """Make the complete, unmounted dataset the live one; the name under which the old one is kept, if there was."""
        await zfs("set", f"{ADOPTING}={prefix}", complete)
        seen = await self.look()
        old = await self._make_way(seen, prefix) if seen.live is not None else None
        try:
            await self._take_name(seen.found[complete])
        except ZfsError as error:
            # Nothing is live now, and nothing else will be: a reason that passes must not cost the restore.
            self._log.warning("what was restored did not take its place: trying again", reason=str(error))
            await self.open()
        if old is not None:
            with contextlib.suppress(ZfsError):  # else `clear` does it
                await self._retire(old, seen.found[self.names.live])
        return old

    async def _take_name(self, complete: Dataset) -> None:
        await zfs("rename", complete.name, self.names.live)
        await zfs("inherit", ADOPTING, self.names.live)
        live = (await self.look()).live  # its key, if it has one of its own, has another name as well
        if live is None:
            raise Missing(f"{self.names.live} is gone: somebody has destroyed or renamed it")
        await self.mount(live)

    async def isolate(self, seen: Picture, prefix: str) -> str:
        """Put the live dataset aside; under which name. Raises Busy if it is in use, UnsupportedLayout."""
        target = await self._make_way(seen, prefix)
        await self._retire(target, seen.found[self.names.live])
        return target

    async def _make_way(self, seen: Picture, prefix: str) -> str:
        seen.check_alone()
        live = self.names.live
        target = self.names.new_isolated(prefix)
        if self.names.isolated not in seen.found:
            with contextlib.suppress(Exists):  # another peer with the same parent
                await zfs("create", "-o", "canmount=off", "-o", "mountpoint=none", self.names.isolated)
        await self._unmount(seen.found[live])
        if seen.found[live].local(OF) != live:
            await zfs("set", f"{OF}={live}", live)
        await zfs("rename", live, target)
        return target

    async def forbid_bases(self, seen: Picture) -> None:
        """Nothing of what is live or isolated now is built upon."""
        for each in (seen.live, *seen.isolated):
            if each is not None:
                await zfs("set", f"{NO_BASE}=yes", each.name)

    async def _retire(self, isolated: str, as_it_was: Dataset) -> None:
        """It must neither reserve space nor be mounted over the live dataset; the mountpoint tells what is done."""
        for name in ("reservation", "refreservation"):
            if as_it_was[name] not in ("0", "none", "-"):
                await zfs("set", f"{name}=none", isolated)
        await zfs("set", "mountpoint=none", isolated)

    async def _unmount(self, dataset: Dataset) -> None:
        """Raises Busy, in whose words the cause is, when something works in its files for long."""
        if dataset["mounted"] == "yes":
            await zfs("unmount", dataset.name)

    # --- What goes ----------------------------------------------------------------------------------------------

    async def destroy(self, dataset: str) -> None:
        """A dataset that is isolated or being received. What depends on it and is ours takes over what it needs.

        Raises HasClones for somebody else's clone, StorageError for somebody else's snapshots or what lies below it,
        Busy for a hold.
        """
        if not (self.names.is_isolated(dataset) or self.names.is_restoring(dataset)):
            raise StorageError(f"{dataset} is neither isolated nor being received: it stays")
        seen = await self.look()
        if dataset in seen.found and seen.found[dataset]["receive_resume_token"] not in ("-", ""):
            await zfs("receive", "-A", dataset)
            seen = await self.look()
        if seen.adopting is not None and seen.adopting.name == dataset:
            raise StorageError(f"{dataset} is complete and nothing else is live: it stays, to take its place")
        while dependent := seen.dependent(dataset):
            await zfs("promote", dependent)
            seen = await self.look()
        if dataset not in seen.found:  # a cut stream without a base leaves nothing
            return
        snapshots = seen.snapshots(dataset)
        if held := [each.name for each in snapshots if each.number("userrefs")]:
            raise Busy(f"{held[0]} is held (zfs holds), or being sent")
        if foreign := [each.snapshot for each in snapshots if not is_own(each.snapshot)]:
            raise StorageError(f"{dataset} stays: its snapshot @{foreign[0]} is not Manatee's; destroy it by hand")
        if child := seen.below(dataset):
            raise StorageError(f"{dataset} stays: {child} lies below it and is not Manatee's; destroy it by hand")
        with contextlib.suppress(Missing):
            await self._unmount(seen.found[dataset])
            await zfs("destroy", "-r", dataset)

    async def clear(self, seen: Picture, *, spare: str | None = None) -> int:
        """Destroy what is being received, all but `spare` and what is to become live; how many there were.

        What cannot go stays, with a warning, and nothing is kept waiting for it. It never becomes live by itself.
        """
        spared = (spare, seen.adopting.name if seen.adopting else None)
        doomed = [each for each in seen.restoring if each.name not in spared]
        for stays in await self._destroy_each([each.name for each in doomed]):
            if seen.found[stays].local(ADOPTING):
                await zfs("inherit", ADOPTING, stays)
        for each in seen.isolated:
            if each["mountpoint"] == str(self.directory):
                await self._retire(each.name, each)  # cut short after the rename
        return len(doomed)

    async def drop_isolated(self, keep: int) -> Dropped:
        """Destroy what was put aside, all but the newest `keep`. What cannot go stays, with a warning."""
        found = (await self.look()).isolated
        doomed = [each.name for each in found[: max(0, len(found) - keep)]]
        stay = await self._destroy_each(doomed)
        return Dropped(len(doomed) - len(stay), stay)

    async def _destroy_each(self, datasets: Sequence[str]) -> dict[str, str]:
        """Which of them stay, and why; a warning of each of these when that is news."""
        stay = {}
        for name in datasets:
            try:
                await self.destroy(name)
            except StorageError as error:
                if await command.get(name, ()) is None:  # another process was faster
                    continue
                stay[name] = "somebody's clone depends on it" if isinstance(error, HasClones) else str(error)
                if self._staying.get(name) != stay[name]:
                    self._log.warning("what a restore has left stays", dataset=name, reason=stay[name])
                self._staying[name] = stay[name]
        return stay

    # --- Properties ---------------------------------------------------------------------------------------------

    async def dress(self, dataset: str, properties: Mapping[str, str]) -> None:
        """Set properties one by one, where they are not set; one that cannot be set here is no reason to fail."""
        there, refused = await command.local(dataset), dict[str, str]()
        for name, value in properties.items():
            if there.get(name) == value:
                continue
            try:
                await zfs("set", f"{name}={value}", dataset)
            except ZfsError as error:
                refused[name] = str(error)
        if refused:
            self._log.warning("properties were not carried over", dataset=dataset, refused=refused)

    def own_directory(self) -> None:
        """The root of the new dataset is PostgreSQL's, as `initdb` and PostgreSQL expect."""
        if self._owner is not None:
            os.chown(self.directory, self._owner.uid, self._owner.gid)


def _is_root_of_a_filesystem(directory: Path) -> bool:
    try:
        return directory.stat().st_dev != directory.parent.stat().st_dev
    except OSError:
        return False


def _holds_files(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"{directory} cannot be read: {error.strerror}") from error

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
from collections.abc import Mapping
from pathlib import Path

from manatee.log import Logger
from manatee.storage.child import Account
from manatee.storage.errors import StorageError, UnsupportedLayout
from manatee.storage.zfs import command, holds
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import Busy, Denied, Exists, HasClones, Missing, ZfsError
from manatee.storage.zfs.names import ADOPTING, FROM, NO_BASE, OF, SHARED, Names, is_own
from manatee.storage.zfs.properties import ADVISED, NEW, carried

_LIVE = (
    *("guid", "mounted", "mountpoint", "origin", "available", "used", "referenced", "compressratio", "creation"),
    *("encryption", "keystatus", "keylocation", "receive_resume_token"),
    *(*ADVISED, OF, ADOPTING, NO_BASE, FROM),
)
_SNAPSHOT = ("guid", "creation", "createtxg", "used", "referenced", "userrefs", SHARED)


class Place:
    """The names, and what is done with them. Of several processes only the sitter, or rebuild, changes anything."""

    def __init__(self, names: Names, directory: Path, owner: Account | None, log: Logger) -> None:
        self.names = names
        self.directory = directory
        self._owner = owner
        self._log = log

    # --- Looking ------------------------------------------------------------------------------------------------

    async def live(self) -> Dataset | None:
        """The live dataset. Raises StorageError if it cannot be known whether there is one."""
        found = await command.get(self.names.live, _LIVE)
        if found is None and await command.get(self.names.parent, ("type",)) is None:
            raise StorageError(f"{self.names.parent} does not exist: is the pool imported, and storage.dataset right?")
        return found

    async def is_mounted(self) -> bool:
        """Whether the live dataset is there and where it belongs."""
        found = await self.live()
        return found is not None and self._mounted(found)

    async def restoring(self) -> list[Dataset]:
        """What is being received, or was when something died."""
        found = await command.below(self.names.parent, _LIVE)
        return [each for each in found if self.names.is_restoring(each.name)]

    async def isolated(self) -> list[Dataset]:
        """What of this peer was put aside, the oldest first."""
        found = await command.below(self.names.isolated, _LIVE)
        ours = [each for each in found if self.names.is_isolated(each.name) and each[OF] == self.names.live]
        return sorted(ours, key=lambda each: each.name[-13:])

    async def snapshots(self, dataset: str) -> list[Dataset]:
        """All snapshots of a dataset, the oldest first."""
        found = [each for each in await command.below(dataset, _SNAPSHOT) if each.filesystem == dataset != each.name]
        return sorted(found, key=lambda each: (each.number("createtxg"), each.number("creation"), each.name))

    # --- Making it reachable ------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Finish what a death has interrupted, and mount; whether there is a live dataset. Raises StorageError."""
        found = await self.live()
        if found is None:
            marked = [each for each in await self.restoring() if each.local(ADOPTING)]
            if not marked:
                return False
            self._log.warning("going on where a restore was cut short", dataset=marked[-1].name)
            await self._take_name(marked[-1].name)
            return True
        if not self._mounted(found):
            await self.mount(self.names.live, found)
        return True

    async def create(self) -> None:
        """A new dataset, mounted; with what suits a database where the operator has said nothing above it."""
        suitable = await self.suitable()
        await self.create_unmounted(self.names.live, {**suitable, "mountpoint": str(self.directory)})
        self._log.info("dataset created", dataset=self.names.live, properties=suitable)
        await self.mount(self.names.live)

    async def create_unmounted(self, dataset: str, options: Mapping[str, str]) -> None:
        wanted = {"canmount": "noauto", **options}
        await zfs("create", *(word for name, value in wanted.items() for word in ("-o", f"{name}={value}")), dataset)

    async def suitable(self) -> dict[str, str]:
        """The properties of a new dataset: those of the one that it follows, else what suits a database."""
        before = [await self.live(), *reversed(await self.isolated())]
        found = next((each for each in before if each is not None), None)
        if found is not None:
            return carried(await command.local(found.name))
        above = await command.get(self.names.parent, NEW)
        return {name: value for name, value in NEW.items() if above is None or above.is_default(name)}

    async def mount(self, dataset: str, found: Dataset | None = None) -> None:
        """Mount at the directory that is its own. Raises StorageError, with what to do."""
        found = found or await command.get(dataset, _LIVE)
        if found is None:
            raise Missing(f"{dataset} does not exist")
        if found["mountpoint"] != str(self.directory):
            raise StorageError(
                f"{dataset} has the mountpoint {found['mountpoint']} and storage.directory is {self.directory}: "
                f"zfs set mountpoint={self.directory} {dataset}, or correct the setting"
            )
        if found["mounted"] == "yes":
            raise StorageError(f"{dataset} is mounted, but {self.directory} is not its root for this process")
        if await asyncio.to_thread(_holds_files, self.directory):
            raise StorageError(
                f"{dataset} is not mounted and {self.directory} holds files: move them away, they would be hidden"
            )
        await self.mount_at(dataset, self.directory)

    async def mount_at(self, dataset: str, directory: Path) -> None:
        """Mount where its mountpoint already says, and let PostgreSQL's user in."""
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

    async def unmount(self, dataset: str) -> None:
        """Raises Busy, in whose words the cause is, when something works in its files for long."""
        found = await command.get(dataset, ("mounted",))
        if found is not None and found["mounted"] == "yes":
            await zfs("unmount", dataset)

    # --- The renames --------------------------------------------------------------------------------------------

    async def adopt(self, complete: str, prefix: str) -> str | None:
        """Make the complete, unmounted dataset the live one; the name under which the old one is kept, if there was."""
        await self._make_isolated()
        await zfs("set", f"{ADOPTING}={prefix}", complete)
        old = await self.isolate(prefix)
        await self._take_name(complete)
        return old

    async def _take_name(self, complete: str) -> None:
        await zfs("rename", complete, self.names.live)
        await zfs("inherit", ADOPTING, self.names.live)
        await self.mount(self.names.live)

    async def isolate(self, prefix: str, *, base: bool = True) -> str | None:
        """Put the live dataset aside; under which name, or None if there is none. Raises Busy if it is in use."""
        if await self.live() is None:
            return None
        await self.check_alone()
        target = self.names.new_isolated(prefix)
        await self._make_isolated()
        await self.unmount(self.names.live)
        await zfs("set", f"{OF}={self.names.live}", self.names.live)
        if not base:
            await zfs("set", f"{NO_BASE}=yes", self.names.live)
        await zfs("rename", self.names.live, target)
        await self._retire(target)
        return target

    async def forbid_bases(self) -> None:
        """Nothing that was isolated so far is built upon."""
        for each in await self.isolated():
            await zfs("set", f"{NO_BASE}=yes", each.name)

    async def check_alone(self) -> None:
        """Raises UnsupportedLayout if other datasets lie below the live one: they would move along with it."""
        found = await command.below(self.names.live, ())
        children = [each.name for each in found if "@" not in each.name and each.name != self.names.live]
        if children:
            raise UnsupportedLayout(f"{children[0]} lies below {self.names.live}: the data must be in one dataset")

    async def _retire(self, isolated: str) -> None:
        """It must neither be mounted over the live dataset nor reserve space."""
        await zfs("set", "mountpoint=none", isolated)
        found = await command.local(isolated)
        for name in ("reservation", "refreservation"):
            if found.get(name, "0") not in ("0", "none"):
                await zfs("set", f"{name}=none", isolated)

    async def _make_isolated(self) -> None:
        if await command.get(self.names.isolated, ("type",)) is None:
            with contextlib.suppress(Exists):  # another peer with the same parent
                await zfs("create", "-o", "canmount=off", "-o", "mountpoint=none", self.names.isolated)

    # --- What goes ----------------------------------------------------------------------------------------------

    async def destroy(self, dataset: str) -> None:
        """A dataset that is isolated or being received. What depends on it and is ours takes over what it needs.

        Raises HasClones for somebody else's clone, StorageError for somebody else's snapshots, Busy for a hold.
        """
        assert self.names.is_isolated(dataset) or self.names.is_restoring(dataset)
        found = await command.get(dataset, ("receive_resume_token", "mounted"))
        if found is None:
            return
        if found["receive_resume_token"] not in ("-", ""):
            await zfs("receive", "-A", dataset)
        while dependent := await self._dependent(dataset):
            await zfs("promote", dependent)
        snapshots = await self.snapshots(dataset)
        held = [each.name for each in snapshots if each.number("userrefs")]
        if held:
            raise Busy(f"{held[0]} is held (zfs holds), or being sent")
        foreign = [each.snapshot for each in snapshots if not is_own(each.snapshot)]
        if foreign:
            raise StorageError(f"{dataset} stays: its snapshot @{foreign[0]} is not Manatee's; destroy it by hand")
        with contextlib.suppress(Missing):  # a cut stream without a base leaves nothing
            await self.unmount(dataset)
            await zfs("destroy", "-r", dataset)

    async def _dependent(self, dataset: str) -> str | None:
        """Which of our datasets was cloned from the newest of its snapshots that have clones."""
        ages = {each.name: age for age, each in enumerate(await self.snapshots(dataset))}
        ours = [await command.get(name, ("origin",)) for name in await holds.datasets(self.names)]
        depending = [each for each in ours if each is not None and each["origin"] in ages]
        return max(depending, key=lambda each: ages[each["origin"]]).name if depending else None

    async def clear(self, *, spare: str | None = None) -> int:
        """Destroy what is being received, all but `spare`; how many there were."""
        doomed = [each.name for each in await self.restoring() if each.name != spare]
        for name in doomed:
            await self.destroy(name)
        for each in await self.isolated():
            if each["mountpoint"] == str(self.directory):
                await self._retire(each.name)  # cut short after the rename
        return len(doomed)

    async def drop_isolated(self, keep: int) -> int:
        """Destroy what was put aside, all but the newest `keep`. What cannot go stays, with a warning."""
        found = await self.isolated()
        dropped = 0
        for each in found[: max(0, len(found) - keep)]:
            try:
                await self.destroy(each.name)
                dropped += 1
            except StorageError as error:
                what = "somebody's clone depends on it" if isinstance(error, HasClones) else str(error)
                self._log.warning("what was isolated stays", dataset=each.name, reason=what)
        return dropped

    # --- Properties ---------------------------------------------------------------------------------------------

    async def dress(self, dataset: str, properties: Mapping[str, str]) -> None:
        """Set properties one by one, where they are not set; one that cannot be set here is no reason to fail."""
        there = await command.local(dataset)
        for name, value in properties.items():
            if there.get(name) == value:
                continue
            try:
                await zfs("set", f"{name}={value}", dataset)
            except ZfsError as error:
                self._log.warning("a property was not carried over", dataset=dataset, property=name, reason=str(error))

    def _mounted(self, found: Dataset) -> bool:
        return (
            found["mounted"] == "yes"
            and found["mountpoint"] == str(self.directory)
            and _is_root_of_a_filesystem(self.directory)
        )

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

"""What there is around the live dataset at one moment: one command of zfs(8), and the questions that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from manatee.storage.errors import StorageError, UnsupportedLayout
from manatee.storage.zfs import command
from manatee.storage.zfs.command import Dataset
from manatee.storage.zfs.names import ADOPTING, FROM, KEPT, NO_BASE, OF, SHARED, TAKEN_FOR, Names, is_own
from manatee.storage.zfs.properties import ADVISED

_PROPERTIES = (
    *("guid", "mounted", "mountpoint", "origin", "available", "used", "referenced", "compressratio", "creation"),
    *("createtxg", "userrefs", "reservation", "refreservation", "receive_resume_token"),
    *("encryption", "encryptionroot", "keystatus", "keylocation", "ivsetguid"),
    *(*ADVISED, OF, ADOPTING, NO_BASE, FROM, SHARED, KEPT, TAKEN_FOR),
)
_DEPTH = 3
"""`<parent>/isolated/<dataset>@<snapshot>`."""


@dataclass(frozen=True)
class Picture:
    """Everything below the parent as it was."""

    names: Names
    found: Mapping[str, Dataset]

    @property
    def parent(self) -> Dataset:
        return self.found[self.names.parent]

    @property
    def live(self) -> Dataset | None:
        return self.found.get(self.names.live)

    @cached_property
    def restoring(self) -> list[Dataset]:
        """What is being received, or was when something died, the oldest first."""
        return sorted((each for each in self._all() if self.names.is_restoring(each.name)), key=_time)

    @cached_property
    def isolated(self) -> list[Dataset]:
        """What of this peer was put aside, the oldest first."""
        found = (each for each in self._all() if self.names.is_isolated(each.name) and each[OF] == self.names.live)
        return sorted(found, key=_time)

    @property
    def partial(self) -> Dataset | None:
        """What a stream that was cut has left to go on from."""
        return next((each for each in reversed(self.restoring) if each["receive_resume_token"] not in ("-", "")), None)

    @property
    def adopting(self) -> Dataset | None:
        """What is to become live because the old live one has made way already."""
        marked = [each for each in self.restoring if each.local(ADOPTING)]
        return marked[-1] if marked and self.live is None else None

    @property
    def before(self) -> Dataset | None:
        """The dataset whose place the next one takes: live, or put aside."""
        return self.live or next(reversed(self.isolated), None)

    def snapshots(self, dataset: str) -> list[Dataset]:
        """All snapshots of a dataset, the oldest first."""
        found = [each for each in self._all() if each.name.startswith(f"{dataset}@")]
        return sorted(found, key=lambda each: (each.number("createtxg"), each.number("creation"), each.name))

    @property
    def unfinished(self) -> list[Dataset]:
        """Our own snapshots that were taken for a stream which has not come to its end, and may be gone on with."""
        found = (each for each in self.snapshots(self.names.live) if is_own(each.snapshot))
        return [each for each in found if each.local(TAKEN_FOR) and not each.local(SHARED)]

    def bases(self) -> list[Dataset]:
        """Our own snapshots that a difference may build on, the newest first.

        Not those of live data that have a key of their own: it would go to what is promoted over them, and ZFS renames
        nothing away from the dataset that has its key (`dsl_dir_rename_crypt_check`). Put aside, they may be.

        An increment that was cut has those that it builds on; destroyed, it gives them back to whom they came from.
        """
        live = self.live if self.live is not None and self.live["encryptionroot"] != self.live.name else None
        possible = (live, self.partial, *self.isolated)
        holders = [each for each in possible if each is not None and not each.local(NO_BASE)]
        found = [each for holder in holders for each in self.snapshots(holder.name) if is_own(each.snapshot)]
        return sorted(found, key=lambda each: each.snapshot, reverse=True)

    def dependent(self, dataset: str) -> str | None:
        """Which of our datasets was cloned from the newest of its snapshots that have clones."""
        ages = {each.name: age for age, each in enumerate(self.snapshots(dataset))}
        ours = [each for each in (self.live, *self.restoring, *self.isolated) if each is not None]
        depending = [each for each in ours if each["origin"] in ages]
        return max(depending, key=lambda each: ages[each["origin"]]).name if depending else None

    def below(self, dataset: str) -> str | None:
        """A filesystem below a dataset, if there is one."""
        return next((each.name for each in self._all() if each.filesystem.startswith(f"{dataset}/")), None)

    def check_alone(self) -> None:
        """Raises UnsupportedLayout if other datasets lie below the live one: they would move along with it."""
        if child := self.below(self.names.live):
            raise UnsupportedLayout(f"{child} lies below {self.names.live}: the data must be in one dataset")

    def _all(self) -> list[Dataset]:
        return list(self.found.values())


async def look(names: Names) -> Picture:
    """Raises StorageError if it cannot be known what there is."""
    found = await command.tree(names.parent, _PROPERTIES, _DEPTH)
    if names.parent not in found:
        raise StorageError(f"{names.parent} does not exist: is the pool imported, and storage.dataset right?")
    return Picture(names, found)


def _time(dataset: Dataset) -> str:
    return dataset.name[-13:]

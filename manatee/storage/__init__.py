"""Where the data live, and how a snapshot of them travels: one protocol, several drivers (`open_storage`).

A snapshot is sent as one stream of bytes and received *beside* the live data; it takes their place only when it is
complete, checked and durable. What was there before is kept, isolated, until someone drops it. Streams are plain
descriptors, so a driver may leave the moving of bytes to a child process, a thread in a system call, or the kernel.

The side that receives says what it `wanted()` (its driver, and whatever that driver's other end can make use of: the
snapshots it has already, a token to go on from); the side that sends answers with an `Offer` before the first byte.
Neither the backup server nor the restore looks into what belongs to the driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from manatee.config import Settings
from manatee.storage.datadir import Identity
from manatee.storage.errors import (
    NoDatabase,
    NoSpace,
    NotServing,
    ReceiveFailed,
    SendFailed,
    StorageError,
    UnsupportedLayout,
)

__all__ = [
    "Dropped",
    "Identity",
    "NoDatabase",
    "NoSpace",
    "NotServing",
    "Offer",
    "ReceiveFailed",
    "Receiving",
    "SendFailed",
    "Sending",
    "Snapshot",
    "Storage",
    "StorageError",
    "UnsupportedLayout",
    "open_storage",
]


@dataclass(frozen=True)
class Snapshot:
    """A moment of the data that is kept."""

    name: str
    """Milliseconds since the epoch, 13 digits."""
    created: float
    """Seconds since the epoch."""
    size: int | None = None
    """Bytes that it alone holds, where the driver knows."""
    shared_with: str | None = None
    """The id of another peer that has it, too: what each has changed since is all that a restore has to move."""
    resumable_until: float | None = None
    """Of one that was taken for a stream which has not come to its end, and for nothing else: seconds since the epoch
    until which that may be gone on with."""


@dataclass(frozen=True)
class Dropped:
    """What has become of the data that were isolated."""

    count: int = 0
    """How many were destroyed."""
    stay: Mapping[str, str] = field(default_factory=dict)
    """Those that could not be, and why."""


@dataclass(frozen=True)
class Offer:
    """What a stream will hold, said before its first byte."""

    driver: str
    snapshot: str
    identity: Identity
    size: int | None = None
    """An estimate, in bytes of the stream."""
    detail: Mapping[str, str] = field(default_factory=dict)
    """For the receiving driver alone."""
    continues: bool = False
    """It goes on where a stream before it was cut; `size` is that of the rest."""


class Sending(Protocol):
    """A snapshot on its way out."""

    moved: int
    """Bytes that were read of it. Whoever reads says so: of a stream that is cut they tell whether to go on with it."""

    @property
    def offer(self) -> Offer: ...

    @property
    def fd(self) -> int:
        """Read the stream here, to its end: a non-blocking pipe (`manatee.storage.pipe`). Not the reader's to close."""

    @property
    def checks_itself(self) -> bool:
        """Whether the format tells a damaged stream from a sound one; if not, whoever moves the bytes digests them."""

    async def finished(self) -> None:
        """After the last byte: returns if the whole snapshot was in the stream, raises SendFailed if not."""


class Receiving(Protocol):
    """A snapshot on its way in, beside the live data. Leaving its context before `adopt` takes it away again."""

    @property
    def fd(self) -> int:
        """Write the stream here: a non-blocking pipe. Not the writer's to close. If it breaks, `complete` says why."""

    async def complete(self) -> Identity:
        """After the last byte: the data are whole, checked and durable when this returns. Raises ReceiveFailed.

        Has no deadline of its own: making a large database durable takes as long as the disk does.
        """

    async def adopt(self, prefix: str) -> Path | None:
        """Make the complete data the live ones, durably; where the old ones were isolated, if there were any.

        Killed in the middle, either the old data or the new are live, or none are and the old are isolated.
        """


class Storage(Protocol):
    """The data of this peer. Raises StorageError and what is below it; every operation is safe to repeat."""

    @property
    def driver(self) -> str: ...

    @property
    def data_dir(self) -> Path: ...

    @property
    def keeps_snapshots(self) -> bool:
        """Whether snapshots can be taken and kept; if not, there are none and taking one is refused."""

    @property
    def detail(self) -> Mapping[str, object]:
        """What an operator may want to know of it, as JSON can say it, as far as it is known by now."""

    async def open(self) -> None:
        """Make the data reachable where they should be, and finish what a death has interrupted.

        By the program that runs PostgreSQL, or rebuilds it, before it looks at the data. Raises StorageError.
        """

    async def prepare(self) -> None:
        """As `open`, and make a place for a new database if there is none: `data_dir`'s parent exists."""

    async def has_data(self) -> bool:
        """Whether there is a database here."""

    async def identity(self) -> Identity:
        """Whose data are here. Raises NoDatabase."""

    async def estimate(self) -> int:
        """About how many bytes a stream of all of it would have. Raises NoDatabase, UnsupportedLayout."""

    async def related(self) -> frozenset[str]:
        """The ids of the peers with which a snapshot is shared: a stream from them may be the difference alone."""

    async def wanted(self) -> Mapping[str, str]:
        """What to tell the sender of a stream for this storage."""

    def send(self, wanted: Mapping[str, str]) -> AbstractAsyncContextManager[Sending]:
        """Send a snapshot of now. Everything that belongs to it has ended when the context is left.

        Raises NoDatabase, NotServing or UnsupportedLayout before there is a stream.
        """

    def receive(self, offer: Offer) -> AbstractAsyncContextManager[Receiving]:
        """Receive what was offered. Raises ReceiveFailed for an offer of another driver, NoSpace if it cannot fit."""

    async def isolate(self, prefix: str, *, base: bool = True) -> Path | None:
        """Put the live data aside, durably: where to, or None if there were none. PostgreSQL must not run on them.

        Where to is a directory, or with ZFS the name of a dataset. With `base` false nothing of what follows builds on
        them: the next restore is a full one.
        """

    async def drop_isolated(self, keep: int) -> Dropped:
        """Destroy what was isolated, all but the newest `keep`, and as far as nobody else needs it."""

    async def clear_leftovers(self, *, resumable: bool = False) -> int:
        """Destroy what transfers that were cut short have left; how many there were. None may be running.

        What something of the operator's depends on stays, with a warning, and is counted.

        What the next restore can go on from stays, unless `resumable`: then that goes, too.
        """

    async def release_stale(self) -> int:
        """Let go of what senders that were killed have held on to; how many there were.

        By the program that sends, when it starts.
        """

    async def snapshots(self) -> Sequence[Snapshot]:
        """The snapshots that are Manatee's own, the oldest first."""

    async def take_snapshot(self) -> Snapshot:
        """Take and keep a snapshot of now. Raises StorageError where `keeps_snapshots` is false."""

    async def drop_snapshot(self, name: str) -> None:
        """Destroy one of Manatee's own snapshots; one in use by a transfer is left, with a StorageError."""


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name."""
    if settings.storage.driver == "zfs":  # only the driver that is used is imported
        from manatee.storage.zfs import Zfs

        return Zfs(settings)
    from manatee.storage.basebackup import BaseBackup

    return BaseBackup(settings)

"""The two ways to ZFS behind one protocol: the library libzfs_core, and the command zfs(8).

What is left to the command in either case is what the library does not do: properties, mounts, and all that has to do
with them (creating, cloning, renaming and destroying filesystems).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from manatee.log import Logger
from manatee.storage.zfs.command import Dataset
from manatee.storage.zfs.errors import Unusable
from manatee.storage.zfs.names import Names

Option = Literal["large", "embedded", "compressed", "raw"]
"""What a stream may hold if its receiver understands it."""


@dataclass(frozen=True)
class Order:
    """A stream to be sent."""

    snapshot: str
    base: str | None = None
    """The snapshot, of the same filesystem or its origin, that the receiver has."""
    options: frozenset[Option] = frozenset()
    token: str | None = None
    """The rest of a stream that was cut, by the receiver's `receive_resume_token`."""


class Moving(Protocol):
    """A stream that ZFS is sending or receiving."""

    async def ended(self) -> None:
        """When it has come to its end: returns if all of it went well. Raises ZfsError."""


class Interface(Protocol):
    """All of it raises ZfsError and its kinds. Snapshots are named in full."""

    @property
    def name(self) -> Literal["libzfs_core", "zfs"]: ...

    @property
    def resumable(self) -> bool:
        """Whether a stream that was cut can be gone on with."""

    @property
    def options(self) -> frozenset[Option]:
        """What streams can be asked to hold."""

    async def snapshot(self, snapshot: str, properties: Mapping[str, str]) -> None:
        """With user properties."""

    async def destroy_snapshot(self, snapshot: str) -> None:
        """Raises Busy (held, or being sent) or HasClones."""

    def held(self, *snapshots: Dataset) -> AbstractAsyncContextManager[None]:
        """For as long as the block lasts nobody can destroy them; ends with this process at the latest. By `guid`."""

    async def release_stale(self) -> int:
        """Release what processes that are gone have held; how many holds there were."""

    async def estimate(self, order: Order) -> int | None:
        """Bytes of the stream, about; None where ZFS cannot say."""

    def send(self, order: Order, fd: int) -> AbstractAsyncContextManager[Moving]:
        """Write the stream to `fd`, a pipe. Whoever leaves the block has closed its other end."""

    def receive(self, snapshot: str, fd: int, *, raw: bool, over: bool) -> AbstractAsyncContextManager[Moving]:
        """Read a stream from `fd`, a pipe. Where that is possible, one that is cut can be gone on with.

        `over`: the dataset is there, empty and without a snapshot, to give its properties to what is received.
        """


async def choose(wanted: Literal["auto", "libzfs_core", "zfs"], names: Names, log: Logger) -> Interface:
    """The interface to use. Raises Unusable."""
    from manatee.storage.zfs import by_command

    if wanted != "zfs":
        try:
            from manatee.storage.zfs import by_library  # only what is used is imported

            return await by_library.open_library(names)
        except Unusable as error:
            if wanted == "libzfs_core":
                raise
            log.info("libzfs_core cannot be used: zfs(8) is", reason=str(error))
    return await by_command.open_command(names)

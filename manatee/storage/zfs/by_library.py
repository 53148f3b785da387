"""ZFS through libzfs_core, by OpenZFS's own binding for Python (Debian's `python3-pyzfs`).

Its calls block in the kernel, without the interpreter's lock, until the whole stream has gone through the descriptor:
each gets a thread of its own, which ends when the other end of the pipe is closed. A hold is tied to an open /dev/zfs,
so the kernel releases it when this process ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import structlog

from manatee.storage.zfs import by_command, command
from manatee.storage.zfs.command import Dataset
from manatee.storage.zfs.errors import Busy, Denied, Exists, HasClones, Missing, Unusable, ZfsError
from manatee.storage.zfs.interface import Option, Order
from manatee.storage.zfs.names import Names

_DISTRIBUTION = (Path("/usr/lib/python3/dist-packages"),)
"""Where the system's Python has its packages: a virtual environment does not look there."""
_FLAGS: dict[Option, str] = {
    "large": "large_blocks",
    "embedded": "embedded_data",
    "compressed": "compress",
    "raw": "raw",
}
_KINDS: dict[str, type[ZfsError]] = {
    "DatasetNotFound": Missing,
    "FilesystemNotFound": Missing,
    "SnapshotNotFound": Missing,
    "ParentNotFound": Missing,
    "HoldNotFound": Missing,
    "DatasetExists": Exists,
    "FilesystemExists": Exists,
    "SnapshotExists": Exists,
    "SnapshotIsCloned": HasClones,
    "SnapshotIsHeld": Busy,
    "DatasetBusy": Busy,
    "ZFSInitializationFailed": Unusable,
}
END_WITHIN = 10.0
"""Seconds that a call has to notice that its pipe was closed."""


class Library:
    """`Interface` by libzfs_core. The rest of a stream that was cut is sent by zfs(8), which can read its token."""

    name: Literal["libzfs_core"] = "libzfs_core"
    resumable = True
    options: frozenset[Option] = frozenset(_FLAGS)

    def __init__(self, core: Any, names: Names, command: by_command.Command) -> None:
        self._core = core
        self._command = command
        self._names = names

    async def snapshot(self, snapshot: str, properties: Mapping[str, str]) -> None:
        given = {name.encode(): value.encode() for name, value in properties.items()}
        await _call(self._core.lzc_snapshot, [snapshot.encode()], given)

    async def destroy_snapshot(self, snapshot: str) -> None:
        await _call(self._core.lzc_destroy_snaps, [snapshot.encode()], False)

    @asynccontextmanager
    async def held(self, *snapshots: Dataset) -> AsyncIterator[None]:
        try:
            device = os.open("/dev/zfs", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            raise Unusable(f"/dev/zfs cannot be opened: {error.strerror}") from error
        try:
            tags = {each.name.encode(): f"manatee-{device}".encode() for each in snapshots}
            if missing := await _call(self._core.lzc_hold, tags, device):
                raise Missing(f"{missing[0].decode()} does not exist")
            yield
        finally:
            # And with it goes the hold; on a busy pool that waits for the disk.
            await asyncio.shield(asyncio.create_task(asyncio.to_thread(os.close, device)))

    async def release_stale(self) -> int:
        return await self._command.release_stale()  # of a time when zfs(8) was used

    async def estimate(self, order: Order) -> int | None:
        if order.token is not None:
            return await self._command.estimate(order)
        base = order.base.encode() if order.base else None
        return int(await _call(self._core.lzc_send_space, order.snapshot.encode(), base, _flags(order)))

    @asynccontextmanager
    async def send(self, order: Order, fd: int) -> AsyncIterator[Moving | by_command.Moving]:
        if order.token is not None:
            async with self._command.send(order, fd) as moving:
                yield moving
            return
        base = order.base.encode() if order.base else None
        own = os.dup(fd)
        thread = _Thread(self._core.lzc_send, order.snapshot.encode(), base, own, _flags(order), closing=own)
        async with _ending(thread):
            yield Moving(thread)

    @asynccontextmanager
    async def receive(self, snapshot: str, fd: int, *, raw: bool, over: bool) -> AsyncIterator[Moving]:
        own = os.dup(fd)
        thread = _Thread(self._core.lzc_receive_resumable, snapshot.encode(), own, over, raw, closing=own)
        async with _ending(thread):
            yield Moving(thread)


class Moving:
    """A call that sends or receives."""

    def __init__(self, thread: _Thread) -> None:
        self._thread = thread

    async def ended(self) -> None:
        await asyncio.shield(self._thread.future)


class _Thread:
    """One blocking call. The descriptor is closed when it is over, so that a reader sees the end."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, closing: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        def run() -> None:
            result, failed = None, None
            try:
                result = function(*arguments)
            except Exception as error:  # noqa: BLE001 - its own hierarchy is known only when it was imported
                failed = _translated(error)
            finally:
                if closing is not None:
                    os.close(closing)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failed)

        threading.Thread(target=run, name=function.__name__, daemon=True).start()


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        async with asyncio.timeout(command.TIMEOUT):
            return await _Thread(function, *arguments).future
    except TimeoutError:
        raise ZfsError(f"{function.__name__}: no answer within {command.TIMEOUT:g} s") from None


@asynccontextmanager
async def _ending(thread: _Thread) -> AsyncIterator[None]:
    try:
        yield
    finally:
        done, _ = await asyncio.wait([thread.future], timeout=END_WITHIN)
        if not done:
            structlog.get_logger().warning("ZFS still moves a stream whose pipe was closed")
        elif not thread.future.cancelled():
            thread.future.exception()  # seen


def _flags(order: Order) -> list[str]:
    return [_FLAGS[option] for option in sorted(order.options)]


def _translated(error: Exception) -> Exception:
    """One of ours, by the name of its class; several at once by the first that says something."""
    several = getattr(error, "errors", None)
    first = several[0] if several else error
    names = {kind.__name__ for kind in type(first).__mro__}
    if isinstance(first, OSError):
        return Unusable(f"libzfs_core cannot be loaded: {first}")
    if "ZFSError" not in names:
        return error
    words = re.sub(r"b'([^']*)'", r"\1", str(first))
    if getattr(first, "errno", None) in (1, 13):  # EPERM, EACCES
        return Denied(words)
    return next((kind for name, kind in _KINDS.items() if name in names), ZfsError)(words)


def _import() -> Any:
    try:
        return importlib.import_module("libzfs_core")
    except ImportError as error:
        reason = str(error)
    for directory in _DISTRIBUTION:
        if (directory / "libzfs_core").is_dir():
            sys.path.append(str(directory))
            try:
                return importlib.import_module("libzfs_core")
            except ImportError as error:
                reason = str(error)
            finally:
                sys.path.remove(str(directory))
    raise Unusable(f"{reason} (Debian's python3-pyzfs has it)")


async def open_library(names: Names) -> Library:
    """Raises Unusable if it is not there, cannot be loaded, or finds no ZFS: that shows at the first call only."""
    try:
        core = await asyncio.to_thread(_import)
        await _call(core.lzc_exists, names.live.encode())
    except OSError as error:
        raise Unusable(f"libzfs_core cannot be loaded: {error}") from error
    return Library(core, names, await by_command.open_command(names))

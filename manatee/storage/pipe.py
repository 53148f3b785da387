"""Pipes between the event loop and what sends or receives a snapshot: a child process, or a thread in a system call.

The drivers give out plain descriptors, so that bytes may also be moved by the kernel alone: `splice` moves them between
a pipe and a socket without their ever being in this process. Where the platform has no splice(2), as where bytes must
be looked at (a digest, TLS), they are read and written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_WANTED_CAPACITY = 1 << 20
CHUNK = 256 << 10
"""Bytes moved at a time through this process."""
SLICE = 1 << 20
"""Bytes moved at a time by the kernel."""
_GLANCE = 0.2
"""Seconds between two looks at how far it has come."""
_GATHER = 0.0005
"""Seconds for which what has just begun to come is let gather. A sender of snapshots writes 8 KiB and less at a time:
whoever moves each piece as soon as it is there spends more on being woken than on moving, and takes both processors
from the one who writes and the one who reads (zfs-fuse on two processors: 150 instead of 220 MB/s)."""


class SourceStalled(TimeoutError):
    """Nothing came."""


class TargetStalled(TimeoutError):
    """Nothing was taken."""


class NotSpliceable(Exception):
    """This kernel does not splice between these two; nothing was moved."""


def open_pipe() -> tuple[int, int]:
    """The read and the write end, both not inherited and blocking, with a large buffer where the platform has it."""
    read, write = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # unprivileged users may have used up their share
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _WANTED_CAPACITY)
    return read, write


async def read(fd: int, limit: int = CHUNK) -> bytes:
    """The next bytes of a non-blocking pipe, empty at its end. The caller sets the deadline."""
    while True:
        try:
            return os.read(fd, limit)
        except BlockingIOError:
            await _ready(fd, for_writing=False)
            await asyncio.sleep(_GATHER)


async def write(fd: int, chunk: bytes) -> None:
    """Put all of `chunk` into a non-blocking pipe. The caller sets the deadline. Raises BrokenPipeError."""
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _ready(fd, for_writing=True)


async def splice(source: int, target: int, limit: int, *, source_within: float, target_within: float) -> int:
    """Move at most `limit` bytes inside the kernel, as soon as there are some; how many, 0 at the end of the source.

    One of the two is a pipe, the other a pipe or a socket, and both are non-blocking. The deadlines are in seconds.
    Raises SourceStalled, TargetStalled, NotSpliceable, and OSError when one of the two is broken.
    """
    if sys.platform != "linux":
        raise NotSpliceable
    while (moved := _splice_now(source, target, limit)) is None:
        await _wait(source, target, source_within, target_within)
    return moved


async def splice_all(
    source: int,
    target: int,
    on_bytes: Callable[[int], None],
    *,
    first_within: float,
    source_within: float,
    target_within: float,
) -> None:
    """As `splice`, to the end of the source; the source has another deadline for its first byte.

    A thread does it: on a busy machine a thread that waits in the kernel is woken several times sooner than a loop.
    `on_bytes` is told, in the loop, how many bytes have been moved so far, a few times a second and at last.
    """
    if sys.platform != "linux":
        raise NotSpliceable
    stopped, stop = os.pipe()
    moving = _Moving(source, target, stopped, first_within, source_within, target_within)
    told = 0
    with ThreadPoolExecutor(1, "splice") as thread:
        work = asyncio.get_running_loop().run_in_executor(thread, moving.run)
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_GLANCE)
                if moving.count != told:
                    told = moving.count
                    on_bytes(told)
            await work
        finally:
            moving.given_up = True
            os.close(stop)  # wakes it; it does not wait for anything else
            thread.shutdown()
            os.close(stopped)
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waits any more


class _Moving:
    """The thread's part of `splice_all`."""

    def __init__(
        self, source: int, target: int, stop: int, first_within: float, source_within: float, target_within: float
    ) -> None:
        self.count = 0
        self.given_up = False
        self._ends = source, target, stop
        self._within = first_within, source_within, target_within

    def run(self) -> None:
        source, target, stop = self._ends
        readable, writable = select.poll(), select.poll()
        readable.register(source, select.POLLIN)
        writable.register(target, select.POLLOUT)
        for each in (readable, writable):
            each.register(stop, select.POLLIN)
        first, later, taken = self._within
        while not self.given_up:
            moved = _splice_now(source, target, SLICE)
            if moved == 0:
                return
            if moved is not None:
                self.count += moved
            elif _unread(source) > 0:
                if not writable.poll(1000 * taken):
                    raise TargetStalled
            elif not readable.poll(1000 * (later if self.count else first)):
                raise SourceStalled
            else:
                time.sleep(_GATHER)


def _splice_now(source: int, target: int, limit: int) -> int | None:
    """None if one of the two is not ready; splice(2) does not say which."""
    try:
        return os.splice(source, target, limit, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS):
            raise NotSpliceable from error
        raise


async def _wait(source: int, target: int, source_within: float, target_within: float) -> None:
    """Until the end that was not ready is."""
    for_target = _unread(source) > 0
    try:
        async with asyncio.timeout(target_within if for_target else source_within):
            await _ready(target if for_target else source, for_writing=for_target)
    except TimeoutError:
        raise (TargetStalled if for_target else SourceStalled) from None


def _unread(fd: int) -> int:
    """How many bytes wait to be read."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _ready(fd: int, *, for_writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    watch, forget = (loop.add_writer, loop.remove_writer) if for_writing else (loop.add_reader, loop.remove_reader)
    watch(fd, _wake, ready)
    try:
        await ready
    finally:
        forget(fd)

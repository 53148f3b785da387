"""Pipes between the event loop and what sends or receives a snapshot: a child process, or a thread in a system call.

The drivers give out plain descriptors, so that bytes may also be moved by the kernel alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os

_WANTED_CAPACITY = 1 << 20
CHUNK = 256 << 10
"""Bytes moved at a time."""


def open_pipe() -> tuple[int, int]:
    """The read and the write end, both not inherited and blocking, with a large buffer where the platform has it."""
    read, write = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # unprivileged users may have used up their share
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _WANTED_CAPACITY)
    return read, write


async def read(fd: int) -> bytes:
    """The next bytes of a non-blocking pipe, empty at its end. The caller sets the deadline."""
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            await _ready(fd, for_writing=False)


async def write(fd: int, chunk: bytes) -> None:
    """Put all of `chunk` into a non-blocking pipe. The caller sets the deadline. Raises BrokenPipeError."""
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _ready(fd, for_writing=True)


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

"""ZFS through zfs(8)."""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from manatee.storage.child import Child, running
from manatee.storage.errors import StorageError
from manatee.storage.zfs import command, holds
from manatee.storage.zfs.command import Capabilities, Dataset, zfs
from manatee.storage.zfs.errors import Unusable, ZfsError, from_words
from manatee.storage.zfs.interface import Option, Order
from manatee.storage.zfs.names import Names

LETTERS: dict[Option, str] = {"large": "L", "embedded": "e", "compressed": "c", "raw": "w"}
END_WITHIN = 5.0
"""Seconds that zfs(8) has to notice that its pipe was closed, before it is killed."""


class Command:
    """`Interface` by the command, with what it can do on this machine."""

    name: Literal["zfs"] = "zfs"

    def __init__(self, names: Names, can: Capabilities) -> None:
        self._names = names
        self._can = can
        self.resumable = can.resumable
        self.options = frozenset(option for option, letter in LETTERS.items() if letter in can.send)

    async def snapshot(self, snapshot: str, properties: Mapping[str, str]) -> None:
        options = (word for name, value in properties.items() for word in ("-o", f"{name}={value}"))
        await zfs("snapshot", *options, snapshot)

    async def destroy_snapshot(self, snapshot: str) -> None:
        await zfs("destroy", snapshot, patient=False)

    @asynccontextmanager
    async def held(self, *snapshots: Dataset) -> AsyncIterator[None]:
        hold = await holds.take(self._names, *snapshots)
        try:
            yield
        finally:
            await asyncio.shield(asyncio.create_task(holds.release(self._names, hold)))

    async def release_stale(self) -> int:
        return await holds.release_stale(self._names)

    async def estimate(self, order: Order) -> int | None:
        if not self._can.estimates:
            return None
        found = re.search(r"^size\s+(\d+)", await zfs("send", "-nP", *_sent(order)), re.MULTILINE)
        return int(found[1]) if found else None

    @asynccontextmanager
    async def send(self, order: Order, fd: int) -> AsyncIterator[Moving]:
        async with _moving(["send", *_sent(order)], stdout=fd) as moving:
            yield moving

    @asynccontextmanager
    async def receive(self, snapshot: str, fd: int, *, raw: bool, over: bool) -> AsyncIterator[Moving]:  # noqa: ARG002
        options = ["-u", *(["-s"] if self.resumable else []), *(["-F"] if over else [])]
        async with _moving(["receive", *options, snapshot], stdin=fd) as moving:
            yield moving


class Moving:
    """A `zfs send` or `zfs receive`."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def ended(self) -> None:
        status = await self._child.ended()
        if status != 0:
            raise from_words(self._child.said or f"zfs ended with status {status} and said nothing")


def _sent(order: Order) -> list[str]:
    if order.token is not None:
        return ["-t", order.token]
    letters = "".join(sorted(LETTERS[option] for option in order.options))
    return [*([f"-{letters}"] if letters else []), *(["-i", order.base] if order.base else []), order.snapshot]


@asynccontextmanager
async def _moving(arguments: list[str], *, stdin: int = DEVNULL, stdout: int = DEVNULL) -> AsyncIterator[Moving]:
    async with AsyncExitStack() as stack:
        try:
            program = running([command.program("zfs"), *arguments], stdin=stdin, stdout=stdout)
            child = await stack.enter_async_context(program)
        except OSError as error:
            raise Unusable(f"zfs cannot be run: {error}") from error
        # Where a daemon does the work (zfs-fuse) it is the pipe's end that ends it, and zfs(8) waits for that.
        stack.push_async_callback(_give_time, child)
        yield Moving(child)


async def _give_time(child: Child) -> None:
    try:
        async with asyncio.timeout(END_WITHIN):
            await child.ended()
    except TimeoutError:
        pass


async def open_command(names: Names) -> Command:
    """Raises Unusable."""
    try:
        await command.get(names.live, ("type",))
    except Unusable:
        raise
    except ZfsError as error:
        raise StorageError(f"ZFS does not answer: {error}") from error
    return Command(names, await command.capabilities())

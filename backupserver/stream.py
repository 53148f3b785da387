"""A snapshot from its sender's pipe to the receiver's socket, by the kernel alone where it can be."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import HttpVersion11, web

from backupserver.bandwidth import Bandwidth
from manatee.pace import Pace, remaining
from manatee.storage import SendFailed, Sending, pipe

PREPARE_WITHIN = 1800.0
"""Seconds that a sender has for its first byte: a checkpoint of a busy server with much memory takes minutes."""


class ReceiverGone(Exception):
    """The other end closed the stream, or takes no more bytes."""


@dataclass
class Transfer:
    """One stream and what has become of it."""

    id: str
    state: Literal["preparing", "running", "done", "failed"] = "preparing"
    bytes: int = 0
    size: int | None = None
    """The sender's estimate."""
    sha256: str | None = None
    error: str | None = None
    pace: Pace = field(default_factory=Pace)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nobody waits for it any more."""

    def reached(self, count: int) -> None:
        """So many bytes are on their way by now."""
        self.state = "running"
        self.bytes = count
        self.pace.mark(time.monotonic(), self.bytes)

    def document(self) -> dict[str, object]:
        rate = self.pace.rate(time.monotonic()) if self.state == "running" else None
        return {
            "id": self.id,
            "state": self.state,
            "bytes": self.bytes,
            "size": self.size,
            "bytes_per_second": rate,
            "seconds_left": remaining(self.bytes, self.size, rate),
            "sha256": self.sha256,
            "error": self.error,
        }


@dataclass(frozen=True)
class Pump:
    """Moves a stream from its sender to its receiver.

    Whichever of the two lets `idle_timeout` seconds pass without a byte is given up, but for the sender's first byte.
    """

    sending: Sending
    request: web.Request
    response: web.StreamResponse
    """Its headers are sent."""
    transfer: Transfer
    bandwidth: Bandwidth
    idle_timeout: float

    async def run(self) -> None:
        """All of it; returns at the sender's end. Raises SendFailed, ReceiverGone."""
        moving = asyncio.create_task(self._move())
        leaving = asyncio.create_task(self.transfer.gone.wait())
        try:
            await asyncio.wait((moving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not moving.done():
                raise ReceiverGone("the receiver went away, or this server was stopped")
            await moving
        except pipe.SourceStalled:
            raise SendFailed(f"the sender gave no byte for {self._patience:g} s") from None
        except pipe.TargetStalled:
            raise ReceiverGone(f"the receiver took no byte for {self.idle_timeout:g} s") from None
        except ConnectionError as error:
            raise ReceiverGone("the receiver went away") from error
        finally:
            for each in (moving, leaving):
                each.cancel()
            await asyncio.gather(moving, leaving, return_exceptions=True)
            self.sending.moved = self.transfer.bytes

    @property
    def _patience(self) -> float:
        """Seconds that the sender has for its next byte."""
        return self.idle_timeout if self.transfer.bytes else PREPARE_WITHIN

    async def _move(self) -> None:
        as_it_is = self.sending.checks_itself and self.request.version < HttpVersion11 and not self.request.secure
        if not (as_it_is and await self._by_kernel()):
            await self._by_copying()

    async def _by_kernel(self) -> bool:
        """Into the very socket, past what writes to it else; False, with nothing moved, where the kernel cannot."""
        with _socket(self.request) as socket:
            await self._headers_left()
            try:
                if self.bandwidth.unlimited:
                    await pipe.splice_all(
                        self.sending.fd,
                        socket,
                        self.transfer.reached,
                        first_within=PREPARE_WITHIN,
                        source_within=self.idle_timeout,
                        target_within=self.idle_timeout,
                    )
                else:
                    await self._in_turn(lambda limit: self._splice(socket, limit), pipe.SLICE)
            except pipe.NotSpliceable:
                return False
        return True

    async def _splice(self, socket: int, limit: int) -> int:
        within = self._patience, self.idle_timeout
        return await pipe.splice(self.sending.fd, socket, limit, source_within=within[0], target_within=within[1])

    async def _by_copying(self) -> None:
        hashed = None if self.sending.checks_itself else hashlib.sha256()
        if self.request.transport is not None:  # enough on its way that neither end waits for the other
            self.request.transport.set_write_buffer_limits(high=pipe.SLICE)
        await self._in_turn(lambda limit: self._copy(limit, hashed), pipe.CHUNK)
        self.transfer.sha256 = hashed.hexdigest() if hashed is not None else None

    async def _copy(self, limit: int, hashed: hashlib._Hash | None) -> int:
        try:
            async with asyncio.timeout(self._patience):
                chunk = await pipe.read(self.sending.fd, limit)
        except TimeoutError:
            raise pipe.SourceStalled from None
        if hashed is not None:
            hashed.update(chunk)
        try:
            async with asyncio.timeout(self.idle_timeout):
                await self.response.write(chunk)
        except TimeoutError:
            raise pipe.TargetStalled from None
        return len(chunk)

    async def _in_turn(self, move: Callable[[int], Awaitable[int]], at_once: int) -> None:
        """`move` at most so many bytes, and again until it moves none, as fast as all streams together may."""
        while True:
            allowed = await self.bandwidth.reserve(at_once)
            moved = 0
            try:
                moved = await move(allowed)
            finally:
                self.bandwidth.give_back(allowed - moved)
            if not moved:
                return
            self.transfer.reached(self.transfer.bytes + moved)
            await asyncio.sleep(0)  # neither end may ever have made us wait

    async def _headers_left(self) -> None:
        """Until what was written through the transport has left: the stream goes past it."""
        ends = time.monotonic() + self.idle_timeout
        while self.request.transport is not None and self.request.transport.get_write_buffer_size():
            if time.monotonic() > ends:
                raise pipe.TargetStalled
            await asyncio.sleep(0.01)


@contextmanager
def _socket(request: web.Request) -> Iterator[int]:
    """The request's socket under a descriptor of its own: the event loop wants to be the only one to watch its."""
    if request.transport is None:
        raise ReceiverGone("the receiver went away")
    own = os.dup(request.transport.get_extra_info("socket").fileno())
    try:
        yield own
    finally:
        os.close(own)

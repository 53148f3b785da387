"""A snapshot from its sender's pipe to the receiver's socket, by the kernel alone where it can be."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import HttpVersion11, web

from backupserver.bandwidth import Bandwidth
from manatee.pace import Pace, remaining
from manatee.storage import SendFailed, Sending, pipe

PREPARE_WITHIN = 1800.0
"""Seconds that a sender has for its first byte: a checkpoint of a busy server with much memory takes minutes."""

_Move = Callable[[int, float], Awaitable[int]]
"""Move at most so many bytes, whose sender has so many seconds to give one; how many, 0 at the end."""


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


async def pump(
    sending: Sending,
    request: web.Request,
    response: web.StreamResponse,
    transfer: Transfer,
    bandwidth: Bandwidth,
    idle_timeout: float,
) -> None:
    """Move the whole stream; returns at the sender's end. Raises SendFailed, ReceiverGone.

    Whichever of the two lets `idle_timeout` seconds pass without a byte is given up, but for the sender's first byte.
    """
    moving = asyncio.create_task(_pump(sending, request, response, transfer, bandwidth, idle_timeout))
    leaving = asyncio.create_task(transfer.gone.wait())
    try:
        await asyncio.wait((moving, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not moving.done():
            raise ReceiverGone("the receiver went away, or this server was stopped")
        await moving
    finally:
        for each in (moving, leaving):
            each.cancel()
        await asyncio.gather(moving, leaving, return_exceptions=True)


async def _pump(
    sending: Sending,
    request: web.Request,
    response: web.StreamResponse,
    transfer: Transfer,
    bandwidth: Bandwidth,
    idle_timeout: float,
) -> None:
    source, idle = sending.fd, idle_timeout
    hashed = None if sending.checks_itself else hashlib.sha256()
    as_it_is = hashed is None and request.version < HttpVersion11 and not request.secure
    with _socket(request) if as_it_is else nullcontext(None) as socket:
        if socket is not None:
            await _sent_before(request, idle)
            try:
                if bandwidth.unlimited:
                    await _at_once(source, socket, transfer, idle)
                    return
                await _all(_by_kernel(source, socket, idle), pipe.SLICE, transfer, bandwidth, idle)
            except pipe.NotSpliceable:
                pass
            else:
                return
        await _all(
            _by_copying(sending.fd, response, hashed, idle_timeout), pipe.CHUNK, transfer, bandwidth, idle_timeout
        )
    transfer.sha256 = hashed.hexdigest() if hashed is not None else None


async def _at_once(source: int, socket: int, transfer: Transfer, idle: float) -> None:
    """All of it, by the kernel and as fast as it can."""
    try:
        await pipe.splice_all(
            source, socket, transfer.reached, first_within=PREPARE_WITHIN, source_within=idle, target_within=idle
        )
    except pipe.SourceStalled:
        raise SendFailed(f"the sender gave no byte for {idle if transfer.bytes else PREPARE_WITHIN:g} s") from None
    except pipe.TargetStalled:
        raise ReceiverGone(f"the receiver took no byte for {idle:g} s") from None
    except ConnectionError as error:
        raise ReceiverGone("the receiver went away") from error


async def _all(move: _Move, at_once: int, transfer: Transfer, bandwidth: Bandwidth, idle_timeout: float) -> None:
    patience = PREPARE_WITHIN
    while True:
        allowed = await bandwidth.reserve(at_once)
        moved = 0
        try:
            moved = await move(allowed, patience)
        except pipe.SourceStalled:
            raise SendFailed(f"the sender gave no byte for {patience:g} s") from None
        except pipe.TargetStalled:
            raise ReceiverGone(f"the receiver took no byte for {idle_timeout:g} s") from None
        finally:
            bandwidth.give_back(allowed - moved)
        if not moved:
            return
        patience = idle_timeout
        transfer.reached(transfer.bytes + moved)
        await asyncio.sleep(0)  # neither end may ever have made us wait


def _by_kernel(source: int, socket: int, idle_timeout: float) -> _Move:
    async def move(limit: int, patience: float) -> int:
        try:
            return await pipe.splice(source, socket, limit, source_within=patience, target_within=idle_timeout)
        except ConnectionError as error:
            raise ReceiverGone("the receiver went away") from error

    return move


def _by_copying(source: int, response: web.StreamResponse, hashed: hashlib._Hash | None, idle_timeout: float) -> _Move:
    async def move(limit: int, patience: float) -> int:
        try:
            async with asyncio.timeout(patience):
                chunk = await pipe.read(source, limit)
        except TimeoutError:
            raise pipe.SourceStalled from None
        if not chunk:
            return 0
        if hashed is not None:
            hashed.update(chunk)
        try:
            async with asyncio.timeout(idle_timeout):
                await response.write(chunk)
        except TimeoutError:
            raise pipe.TargetStalled from None
        except ConnectionError as error:
            raise ReceiverGone("the receiver went away") from error
        return len(chunk)

    return move


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


async def _sent_before(request: web.Request, idle_timeout: float) -> None:
    """Until what was written through the transport, the headers, has left: the stream goes past it."""
    ends = time.monotonic() + idle_timeout
    while request.transport is not None and request.transport.get_write_buffer_size():
        if time.monotonic() > ends:
            raise ReceiverGone(f"the receiver took no byte for {idle_timeout:g} s")
        await asyncio.sleep(0.01)

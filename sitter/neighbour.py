"""Notices at once when the peer at the other end of synchronous replication dies: a connection to its sitter, and what
becomes of it.

Nothing is said over that connection, and nothing is polled while it stands. When it breaks, the peer's sitter and its
PostgreSQL are connected to, several times within a fraction of a second: *refused* every time is evidence that its
processes are gone. A connection that is accepted, or gets no answer, is none. Neither is one that is refused by other
peers' sitters, too: then it is the network that refuses. This finds out; what follows from it is for `sitter.eviction`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from enum import Enum, auto

from manatee.log import Logger
from sitter.view import Death, Neighbour

ROUNDS = 4
INTERVAL = 0.05
"""How often each port is tried before a peer is seen dead, and the seconds between."""

PATIENCE = 0.5
"""Seconds for one answer, on a busy machine, too. Whoever refuses does so at once."""

CONNECT_TIMEOUT = 2.0

UNREACHABLE = (OSError, OverflowError, ValueError)
"""No connection: deadlines, networks, no file descriptors left; and an address that is none."""

FIRST_DELAY, AT_FIRST = 0.02, 2.0
LONGEST_DELAY = 30.0
"""Seconds between two attempts to connect: in the first `AT_FIRST` seconds after a connection has ended, since what is
killed takes a moment to be gone; then doubling up to the last."""

FRESH = 3.0
"""Seconds for which a death that was seen counts."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 10, 3
"""Seconds, seconds, probes: so that the connection to a host that vanished does not stay for ever (tcp(7))."""


class Answer(Enum):
    """What comes of an attempt to connect."""

    ACCEPTED = auto()
    REFUSED = auto()
    NONE = auto()
    """No answer in time, or any other error: it says nothing."""


class Lookout:
    """Holds the connection to the neighbour that is wanted. `on_change` is called when one was seen dead."""

    def __init__(self, log: Logger, on_change: Callable[[], None]) -> None:
        self._log = log
        self._on_change = on_change
        self._wanted: Neighbour | None = None
        self._news = asyncio.Event()
        self._seen: tuple[Death, float] | None = None
        self._doubt: str | None = None
        """Why the neighbour was not seen dead the last time; for the log, once."""
        self.connected = False

    @property
    def neighbour(self) -> Neighbour | None:
        """Whom it is to look out for."""
        return self._wanted

    @property
    def death(self) -> Death | None:
        """Of the wanted neighbour, in the wanted generation, seen just now, and no connection made since."""
        one = self._wanted
        if one is None or self._seen is None:
            return None
        death, at = self._seen
        same = (death.node, death.generation) == (one.node, one.generation)
        return death if same and time.monotonic() - at < FRESH else None

    def want(self, neighbour: Neighbour | None) -> None:
        """Look out for this one from now on. The connection stays if it is still the same session of the same peer."""
        before, self._wanted = self._wanted, neighbour
        if _place(before) != _place(neighbour):
            self._seen = None
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._news.clear()
            if self._wanted is None:
                await self._news.wait()
                continue
            work = asyncio.create_task(self._keep_looking())
            news = asyncio.create_task(self._news.wait())
            try:
                await asyncio.wait((work, news), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()  # it ends by nothing but an error that nobody expected
            finally:
                for each in (work, news):
                    each.cancel()
                await asyncio.gather(work, news, return_exceptions=True)

    async def _keep_looking(self) -> None:
        ended, delay = time.monotonic(), FIRST_DELAY
        while (one := self._wanted) is not None:
            try:
                if held := await self._hold(one):
                    ended, delay = time.monotonic(), FIRST_DELAY
                judge = held
            except ConnectionRefusedError:
                judge = True
            if judge:
                await self._judge(one)
            await asyncio.sleep(delay)
            if time.monotonic() - ended > AT_FIRST:
                delay = min(2 * delay, LONGEST_DELAY)

    async def _hold(self, one: Neighbour) -> bool:
        """Connect, and wait for the end of the connection; False if there is none. Raises ConnectionRefusedError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(*one.sitter)
        except ConnectionRefusedError:
            raise
        except UNREACHABLE:
            return False
        self.connected, self._seen, self._doubt = True, None, None
        try:
            with contextlib.suppress(OSError):
                _keep_alive(writer.get_extra_info("socket"))  # some systems refuse that once the other end has gone
                while await reader.read(1024):
                    pass
        finally:
            self.connected = False
            writer.transport.abort()
        return True

    async def _judge(self, one: Neighbour) -> None:
        """Is the neighbour dead, to whose sitter there is no connection?"""
        one, begun = self._wanted or one, time.monotonic()
        doubt = await doubts(one)
        if doubt != self._doubt:
            self._doubt = doubt
            if doubt:
                self._log.info("no connection to a peer, which is not seen dead", neighbour=one.label, reason=doubt)
        if doubt:
            return
        detail = f"refused on both ports {ROUNDS} times within {time.monotonic() - begun:.2f} s"
        self._seen = Death(one.node, one.generation, detail), time.monotonic()
        self._log.warning("seen dead", neighbour=one.label, node=one.node, detail=detail)
        self._on_change()


async def doubts(one: Neighbour) -> str | None:
    """Why this peer cannot be called dead; None if it can. Connects to it `ROUNDS` times, and to the witnesses."""
    asked = []
    try:
        for number in range(ROUNDS):
            if number:
                await asyncio.sleep(INTERVAL)
            asked.append(asyncio.ensure_future(_answers(*one.witnesses)))
            for what, answer in zip(("sitter", "PostgreSQL"), await _answers(one.sitter, one.postgres), strict=True):
                if answer is not Answer.REFUSED:
                    return f"its {what} {'accepts connections' if answer is Answer.ACCEPTED else 'does not answer'}"
        for answers in [await each for each in asked]:
            if Answer.REFUSED in answers:
                return "another peer's sitter refuses connections, too"
            if Answer.ACCEPTED not in answers:
                return "no other peer's sitter answers"
        return None
    finally:
        for each in asked:
            each.cancel()


async def _answers(*places: tuple[str, int]) -> list[Answer]:
    return await asyncio.gather(*(_answer(*place) for place in places))


async def _answer(host: str, port: int) -> Answer:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(one, (host, port))
    except ConnectionRefusedError:
        return Answer.REFUSED
    except UNREACHABLE:
        return Answer.NONE
    return Answer.ACCEPTED


def _place(one: Neighbour | None) -> tuple[str, tuple[str, int]] | None:
    return (one.node, one.sitter) if one else None


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": KEEPALIVE_IDLE, "TCP_KEEPINTVL": KEEPALIVE_INTERVAL, "TCP_KEEPCNT": KEEPALIVE_COUNT}
    for name, value in options.items():
        if hasattr(socket, name):  # as the platform has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

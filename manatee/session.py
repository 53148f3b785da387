"""One session with ZooKeeper, in asyncio's terms and with honest answers. kazoo itself is in
`manatee.connection`.

kazoo keeps the connection in a thread of its own. What is done about it here, and why:

- Everything that thread learns is handed to the event loop in the order in which it came from the server. ZooKeeper
  promises that a client hears of a change before it can read what the change made; two worker threads, which kazoo
  would use, break that promise.
- kazoo queues requests while it is disconnected, and tells of an expired session only after it has reconnected. Here a
  request fails at once when there is no connection, and the age of the session is judged by our own clock.
- A request that was never sent (`Unreachable`) and one whose answer is missing (`OutcomeUnknown`) are different facts,
  told apart exactly: see `Write`.
- A lost connection is made again within half a second of the server's return, in the same session if it still lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import (
    BadVersionError,
    ConnectionClosedError,
    ConnectionLoss,
    NodeExistsError,
    NoNodeError,
    OperationTimeoutError,
    RequestTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    SessionMovedError,
    ZookeeperError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.serialization import CheckVersion, Create, Delete, SetData
from kazoo.protocol.states import KazooState, WatchedEvent
from kazoo.security import OPEN_ACL_UNSAFE

from manatee.config import ZooKeeper
from manatee.connection import RECONNECT_DELAY, Client, Pulse, Trouble, Write
from manatee.log import Logger

_LOST = (
    ConnectionLoss,
    BadVersionError,
    ConnectionClosedError,
    SessionExpiredError,
    SessionMovedError,
    OperationTimeoutError,
    RequestTimeoutError,
    KazooTimeoutError,
)
"""What a request ends in when it is not answered, or answered by "perhaps"."""


class CoordinationError(Exception):
    """Something is wrong between us and ZooKeeper; the base of this package's errors about it."""


class Unreachable(CoordinationError):
    """ZooKeeper cannot be asked now. Nothing that was wanted of it is done, or will be."""


class OutcomeUnknown(CoordinationError):
    """A write was sent and its answer is missing: it may have been done, and it may still be done later."""


class Conflict(CoordinationError):
    """Things have moved on since they were read. Nothing of ours was written."""


class NoSuchShard(CoordinationError):
    """ZooKeeper knows no such shard; the message names those it knows."""


@dataclass(frozen=True)
class Node:
    """A znode as it was read."""

    data: bytes
    version: int
    owner: int
    """The session an ephemeral node belongs to; 0 for others."""
    created: float
    """Seconds since the epoch, by ZooKeeper's clock."""
    children: int
    """How many it has."""
    change: int
    """The transaction that last wrote it."""


@dataclass(frozen=True)
class _Link:
    """What the connection's thread knows; replaced as a whole, so that any thread may read it."""

    connected: bool
    session: int | None
    epoch: int


def create(path: str, data: bytes = b"", *, ephemeral: bool = False, sequential: bool = False) -> Create:
    """World-readable and open, as existing clients and peers expect."""
    return Create(path, data, OPEN_ACL_UNSAFE, ephemeral * 1 | sequential * 2)


def write(path: str, data: bytes, version: int = -1) -> SetData:
    return SetData(path, data, version)


def delete(path: str) -> Delete:
    return Delete(path, -1)


def check(path: str, version: int) -> CheckVersion:
    return CheckVersion(path, version)


class Session:
    """A session that is kept alive, and replaced by a new one when ZooKeeper has ended it.

    `on_event` is called in the event loop: with the path of a node that has changed since it was read with a watch, or
    with None when the connection came or went. After a None no watch is armed.
    """

    def __init__(self, settings: ZooKeeper, log: Logger, on_event: Callable[[str | None], None]) -> None:
        self.servers = settings.servers
        self._settings = settings
        self._log = log
        self._on_event = on_event
        self._link = _Link(False, None, 0)
        self._pulse = Pulse(settings.session_timeout)
        self._trouble = Trouble(log)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._known: int | None = None
        self._closing = False

    async def start(self, *, within: float | None = None) -> None:
        """Begin connecting. With `within`, wait that many seconds for the connection and raise Unreachable without."""
        self._loop = asyncio.get_running_loop()
        self._pulse.beat()
        self._connect()
        if within is not None:
            try:
                async with asyncio.timeout(within):
                    await self._arrived.wait()
            except TimeoutError:
                raise self.unreachable() from None

    async def close(self) -> None:
        """End the session, and with it our ephemeral nodes; if ZooKeeper is out of reach they stay until it expires."""
        self._closing = True
        client, self._client = self._client, None
        if client is None:
            return
        assert self._loop is not None
        closed = self._loop.create_future()

        def end() -> None:
            client.stop()
            client.close()
            self._post(_resolve, closed, None, None)

        # A daemon thread, not an executor's: a server that hangs must not keep the process from ending.
        threading.Thread(target=end, name="zookeeper-close", daemon=True).start()
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                await closed
        except TimeoutError:
            self._log.warning("ZooKeeper session not closed in time: it ends by expiring", session=self._name())

    @property
    def connected(self) -> bool:
        """Connected, and heard from within the session's timeout: a process that was suspended knows nothing."""
        return self._link.connected and self._pulse.alive

    @property
    def disconnected_for(self) -> float:
        """Seconds since the session was last known to be alive; 0 while connected."""
        return 0.0 if self.connected else self._pulse.silence

    @property
    def timeout(self) -> float:
        """Of the session, in seconds: as configured, and once connected as the server has granted it."""
        return self._pulse.timeout

    @property
    def id(self) -> int | None:
        """The session's id; None until there is one, and after it has expired."""
        return self._link.session

    @property
    def epoch(self) -> int:
        """Counts connections made and lost: what was watched in another epoch is watched no more."""
        return self._link.epoch

    async def node(self, path: str, *, watch: bool = False) -> Node | None:
        """The node at `path`, or None. A watch is armed for its next change, or for its creation."""
        watcher = self._changed if watch else None
        while True:
            try:
                data, stat = await self._ask(lambda client: client.get_async(path, watch=watcher))
            except NoNodeError:
                # Reading what is not there arms no watch; asking whether it exists does.
                if not watch or await self._ask(lambda client: client.exists_async(path, watch=watcher)) is None:
                    return None
            else:
                return Node(
                    data,
                    stat.version,
                    stat.ephemeralOwner,
                    stat.ctime / 1000,
                    stat.numChildren,
                    stat.last_modified_transaction_id,
                )

    async def children(self, path: str, *, watch: bool = False) -> list[str] | None:
        """The names of the node's children, in no order, or None without the node. Watched like a node."""
        watcher = self._changed if watch else None
        while True:
            try:
                names = await self._ask(lambda client: client.get_children_async(path, watch=watcher))
            except NoNodeError:
                if not watch or await self._ask(lambda client: client.exists_async(path, watch=watcher)) is None:
                    return None
            else:
                return list(names)

    async def catch_up(self, path: str) -> None:
        """After this, reads see at least everything that was written before it (ZooKeeper: `sync`)."""
        await self._ask(lambda client: client.sync_async(path))

    async def commit(self, *operations: Any) -> list[Any]:
        """All of the operations or none, in one transaction; the answers in their order, for a creation its path.

        Raises ZookeeperError, the first refusal, if ZooKeeper has refused it; Unreachable if it was not sent and never
        will be; OutcomeUnknown if it was sent and the answer is missing.
        """
        epoch = self.epoch
        wanted = Write(operations, lambda: self.epoch == epoch)
        try:
            answers: list[Any] = await self._ask(lambda client: client.submit(wanted))
        except Unreachable as error:
            if wanted.withdraw():
                raise
            raise OutcomeUnknown(f"{error}; the write was sent and may still be done") from error
        except asyncio.CancelledError:
            wanted.withdraw()
            raise
        if wanted.withdraw():
            raise Unreachable(f"ZooKeeper at {self.servers}: the connection was lost before the write was sent")
        refusals = [answer for answer in answers if isinstance(answer, Exception)]
        for refusal in refusals:
            # The operations before and after the one that was refused are answered with these.
            if not isinstance(refusal, RolledBackError | RuntimeInconsistency):
                raise refusal
        if refusals:
            raise refusals[0]
        return answers

    async def make(self, *paths: str) -> None:
        """Create these nodes, empty, and those above them, as far as they are missing."""
        above = [path[:end] for path in paths for end in range(2, len(path) + 1) if path[end : end + 1] in ("/", "")]
        for path in dict.fromkeys(above):
            if await self.node(path) is None:
                with contextlib.suppress(NodeExistsError):
                    await self.commit(create(path))

    async def _ask(self, request: Callable[[Client], Any]) -> Any:
        """Send a request and wait for its answer, `request_timeout` seconds at most.

        Raises ZookeeperError for a refusal, Unreachable when there is no answer.
        """
        client, loop = self._client, self._loop
        if client is None or loop is None or not self.connected:
            raise self.unreachable()
        answer: asyncio.Future[Any] = loop.create_future()

        def hand_over(result: Any) -> None:
            error = result.exception
            self._post(_resolve, answer, None if error else result.value, error)

        request(client).rawlink(hand_over)
        limit = self._settings.request_timeout
        try:
            async with asyncio.timeout(limit):
                return await answer
        except TimeoutError:
            raise Unreachable(f"ZooKeeper at {self.servers} does not answer within {limit:g} s") from None
        except _LOST as error:
            raise Unreachable(f"ZooKeeper at {self.servers}: connection lost: {type(error).__name__}") from error

    def _connect(self) -> None:
        if not self._closing:
            client = Client(self._settings, self._pulse, self._trouble.logger)
            client.add_listener(lambda state: self._listen(client, state))
            self._client = client
            client.start_async()

    def _name(self) -> str | None:
        return None if self._known is None else f"{self._known:#x}"

    def unreachable(self) -> Unreachable:
        """The error for now, with the reason as far as it is known."""
        reason = self._trouble.last or "not connected yet"
        return Unreachable(f"ZooKeeper at {self.servers} cannot be reached: {reason}")

    # In the connection's thread ------------------------------------------------------------------------------------

    def _listen(self, client: Client, state: str) -> None:
        before = self._link
        connected = state == KazooState.CONNECTED
        session = before.session
        if connected:
            self._pulse.beat()
            self._trouble.last = None
            session = client.client_id[0]
        elif state == KazooState.LOST:
            session = None
        self._link = _Link(connected, session, before.epoch + 1)
        self._post(self._moved, self._link)

    def _changed(self, event: WatchedEvent) -> None:
        if event.path is not None:
            self._post(self._on_event, event.path)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would want to know
            self._loop.call_soon_threadsafe(function, *arguments)

    # In the event loop ---------------------------------------------------------------------------------------------

    def _moved(self, link: _Link) -> None:
        if self._closing:
            return
        if link.connected:
            resumed = link.session == self._known
            self._known = link.session
            self._arrived.set()
            self._log.info("connected to ZooKeeper", session=self._name(), resumed=resumed, timeout=self.timeout)
        elif link.session is not None:
            self._log.warning("connection to ZooKeeper lost", session=self._name(), reason=self._trouble.last)
        else:
            self._log.error("ZooKeeper session has ended", session=self._name(), reason=self._trouble.last)
            if self._client is not None and self._client.ended:
                self._begin_again(self._client)
        self._on_event(None)

    def _begin_again(self, client: Client) -> None:
        """kazoo's thread has ended on something it did not expect: a new one takes its place."""
        assert self._loop is not None
        client.stop()
        client.close()
        self._loop.call_later(RECONNECT_DELAY, self._connect)


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


@contextlib.contextmanager
def refusals(doing: str) -> Iterator[None]:
    """What ZooKeeper refused, in our own words: nothing of it was done."""
    try:
        yield
    except (BadVersionError, NodeExistsError, NoNodeError) as error:
        raise Conflict(f"could not {doing}: it has changed meanwhile, and nothing was written") from error
    except ZookeeperError as error:
        raise CoordinationError(
            f"ZooKeeper refuses to {doing}: {type(error).__name__.removesuffix('Error')}"
        ) from error

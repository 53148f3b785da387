"""kazoo, tamed: the client behind `manatee.session`, with what was found wanting put right.

It reaches into kazoo where kazoo offers nothing: `_connect`, `_invoke` and `_read_header` of its connection, `_call` of
its client, and that a handler which does not run makes callbacks run where they arise. The tests on a real server would
show a version of kazoo in which any of these has changed.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionDropped, SessionExpiredError
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionHandler
from kazoo.protocol.serialization import Close, Connect, Transaction
from kazoo.protocol.states import KeeperState
from kazoo.retry import KazooRetry

from manatee.config import ZooKeeper
from manatee.log import Logger

RECONNECT_DELAY = 0.35
"""Seconds between attempts to connect; kazoo varies it by up to 40 %."""

_PATIENCE = 5


@dataclass
class Pulse:
    """When the server was last heard, by our own monotonic clock; written by the connection's thread."""

    timeout: float
    """The session's, in seconds: as asked for, then as granted."""
    heard: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        self.heard = time.monotonic()

    @property
    def silence(self) -> float:
        return time.monotonic() - self.heard

    @property
    def alive(self) -> bool:
        return self.silence < self.timeout


class Write(Transaction):  # type: ignore[misc]  # kazoo carries no types
    """A transaction that knows whether it was sent, and that can be withdrawn until then.

    It is sent over the connection it was asked for on (`current`) or not at all. kazoo serializes a request directly
    before it writes it to the socket; one that was withdrawn in its queue becomes the transaction of no operations,
    which ZooKeeper answers and which changes nothing.
    """

    def __new__(cls, operations: tuple[Any, ...], _current: Callable[[], bool]) -> Self:
        write: Self = super().__new__(cls, operations)
        return write

    def __init__(self, _operations: tuple[Any, ...], current: Callable[[], bool]) -> None:
        self._current = current
        self._lock = threading.Lock()
        self._sent = False
        self._withdrawn = False

    def serialize(self) -> bytes:
        with self._lock:
            if self._withdrawn or not self._current():
                self._withdrawn = True
                return bytes(Transaction(()).serialize())
            self._sent = True
        return bytes(super().serialize())

    def withdraw(self) -> bool:
        """True if it was not sent, and now never will be."""
        with self._lock:
            self._withdrawn = not self._sent
            return self._withdrawn


class Client(KazooClient):  # type: ignore[misc]
    """kazoo's client, connecting as we want it."""

    def __init__(self, settings: ZooKeeper, pulse: Pulse, logger: logging.Logger) -> None:
        servers = settings.servers.count(",") + 1
        super().__init__(
            hosts=settings.servers,
            timeout=settings.session_timeout,
            # A server that is gone without a word must not take the time that is left for trying the others.
            handler=_InOrder(connect_timeout=min(1.0, max(0.25, settings.session_timeout / 3 / servers))),
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, max_delay=RECONNECT_DELAY),
            logger=logger,
        )
        self._connection = _Connection(self, self._conn_retry.copy(), logger=logger)
        self.pulse = pulse

    @property
    def ended(self) -> bool:
        """kazoo's thread is gone, and with it the session, without anybody having asked for it."""
        return bool(self.client_state == KeeperState.CLOSED)

    def submit(self, request: Any) -> Any:
        result = self.handler.async_result()
        self._call(request, result)
        return result


class _Connection(ConnectionHandler):  # type: ignore[misc]
    """Notes when the server was last heard, and recognizes a server that has forgotten us.

    A server that was wiped or restored from a backup closes the door on sessions that have seen more than it knows,
    in the same way as one that is still starting, and for ever. A session that is out of reach for longer than its
    timeout, and was turned away `_PATIENCE` times, is therefore given up when a server turns it away, admits a
    stranger, and turns it away again.
    """

    _turned_away = 0
    """How often in a row, not counting attempts that found no server."""

    def _connect(self, host: str, hostip: str, port: int) -> tuple[float, float]:
        try:
            return cast(tuple[float, float], super()._connect(host, hostip, port))
        except ConnectionDropped:
            if not self._forgotten(hostip, port):
                raise
        try:
            return cast(tuple[float, float], super()._connect(host, hostip, port))
        except ConnectionDropped as error:
            raise SessionExpiredError("the server does not know the session, but admits new ones") from error

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        greeting = isinstance(request, Connect)
        self._turned_away += greeting
        answer = super()._invoke(timeout, request, xid)
        if greeting:
            self._turned_away = 0
        if greeting and answer[0].time_out > 0:
            self.client.pulse.timeout = answer[0].time_out / 1000
            self.client.pulse.beat()
        return answer

    def _read_header(self, timeout: float) -> Any:
        header = super()._read_header(timeout)
        self.client.pulse.beat()
        return header

    def _forgotten(self, hostip: str, port: int) -> bool:
        pulse = self.client.pulse
        return self._turned_away >= _PATIENCE and not pulse.alive and self._admits(hostip, port)

    def _admits(self, hostip: str, port: int) -> bool:
        """Whether the server grants a new session; it is closed at once."""
        hello = bytes(Connect(0, 0, 4000, 0, b"\0" * 16, False).serialize())
        goodbye = struct.pack("!ii", 1, Close.type)
        try:
            with self.handler.create_connection((hostip, port), timeout=1.0) as connection:
                connection.settimeout(1.0)
                connection.sendall(struct.pack("!i", len(hello)) + hello)
                granted, _ = Connect.deserialize(_frame(connection), 0)
                connection.sendall(struct.pack("!i", len(goodbye)) + goodbye)
                return bool(granted.time_out > 0)
        except (OSError, struct.error):
            return False


def _frame(connection: socket.socket) -> bytes:
    (length,) = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))
    return connection.recv(length, socket.MSG_WAITALL)


class _InOrder(SequentialThreadingHandler):  # type: ignore[misc]
    """Runs callbacks in the thread that read them from the socket, so that they stay in order.

    All of them are ours, and none does more than to hand something over to the event loop.
    """

    def __init__(self, connect_timeout: float) -> None:
        super().__init__()
        self._connect_timeout = connect_timeout

    def start(self) -> None:
        """No worker threads: what kazoo does when the handler does not run is what is wanted."""

    def stop(self) -> None:
        pass

    def dispatch_callback(self, callback: Any) -> None:
        callback.func(*callback.args)

    def create_connection(self, *args: Any, timeout: float, **options: Any) -> socket.socket:
        connection: socket.socket = super().create_connection(
            *args, timeout=min(timeout, self._connect_timeout), **options
        )
        return connection


class Trouble(logging.Handler):
    """Remembers why there is no connection. kazoo would log it anew with each attempt, three times a second."""

    def __init__(self, log: Logger) -> None:
        super().__init__()
        self.last: str | None = None
        self.logger = logging.Logger("kazoo", logging.WARNING)  # noqa: LOG001  # one for each client, outside of the tree
        self.logger.addHandler(self)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self._log.error(f"kazoo: {record.getMessage()}", exc_info=record.exc_info)
        elif not record.getMessage().startswith("Transition"):
            said = record.getMessage().removeprefix("Connection dropped: ").removeprefix("socket connection error: ")
            self.last = said

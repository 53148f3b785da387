"""A shard as applications see it: who is primary, sync and async now, followed in ZooKeeper.

What is known of a shard stays known while ZooKeeper is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from manatee.address import Address, postgres_address
from manatee.cluster import ClusterState, Peer

if TYPE_CHECKING:
    from manatee.config import ZooKeeper
    from manatee.coordination import Coordination

_ARRIVAL = 10.0
_PAUSE = 0.25
"""Seconds before ZooKeeper is asked again after it could not be."""


@dataclass(frozen=True)
class Chain:
    """A shard as one cluster state has it."""

    generation: int
    primary: Peer
    sync: Peer | None
    asyncs: tuple[Peer, ...]

    @classmethod
    def of(cls, state: ClusterState) -> Self:
        return cls(state.generation, state.primary, state.sync, state.asyncs)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All of them, from the primary on down."""
        return (self.primary, *((self.sync,) if self.sync else ()), *self.asyncs)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Their PostgreSQL servers, from the primary on down."""
        return tuple(postgres_address(peer.pg_url) for peer in self.peers)


class Topology:
    """Follows one shard in ZooKeeper.

    `zookeeper` is `host:port,...` or settings; `shard` a name or an absolute path. `on_change` is called in the event
    loop with every new chain. Used as an async context manager; entering raises `manatee.coordination.Unreachable`
    when ZooKeeper is not there within `arrival` seconds.
    """

    def __init__(
        self,
        zookeeper: str | ZooKeeper,
        shard: str,
        *,
        on_change: Callable[[Chain], None] | None = None,
        arrival: float = _ARRIVAL,
    ) -> None:
        from manatee.config import ZooKeeper

        self._settings = ZooKeeper(servers=zookeeper) if isinstance(zookeeper, str) else zookeeper
        self._root = shard if shard.startswith("/") else f"/manatee/{shard}"
        self._on_change = on_change
        self._arrival = arrival
        self._chain: Chain | None = None
        self._news = asyncio.Event()
        self._look_again = asyncio.Event()
        self._coordination: Coordination | None = None
        self._follower: asyncio.Task[None] | None = None

    @property
    def chain(self) -> Chain | None:
        """The shard as it was last known; None while nobody has set it up."""
        return self._chain

    async def changed(self, seen: Chain | None) -> Chain:
        """The chain, as soon as it is another than `seen`. Waits for ever: put a deadline around it."""
        while self._chain is None or self._chain == seen:
            await self._news.wait()
        return self._chain

    async def __aenter__(self) -> Self:
        import structlog

        from manatee.coordination import Coordination

        log = structlog.get_logger().bind(shard=self._root)
        self._coordination = Coordination(self._settings, self._root, log, self._look_again.set)
        try:
            await self._arrive(self._coordination)
        except BaseException:
            await self._coordination.close()
            raise
        self._follower = asyncio.create_task(self._follow(self._coordination), name=f"topology of {self._root}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        if self._coordination is not None:
            await self._coordination.close()

    async def _arrive(self, coordination: Coordination) -> None:
        """The first look. A connection that is lost again before it is through is no more than a delay."""
        from manatee.coordination import Unreachable

        deadline = time.monotonic() + self._arrival
        await coordination.start(within=self._arrival)
        while True:
            try:
                return await self._look(coordination)
            except Unreachable:
                if time.monotonic() + _PAUSE > deadline:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _follow(self, coordination: Coordination) -> None:
        from manatee.coordination import CoordinationError

        while True:
            await self._look_again.wait()
            try:
                await self._look(coordination)
            except CoordinationError:
                # What was known stays known; the session's return is a change of its own.
                await asyncio.sleep(_PAUSE)
                self._look_again.set()

    async def _look(self, coordination: Coordination) -> None:
        self._look_again.clear()
        view = await coordination.read()
        if view.state is None:
            return
        chain = Chain.of(view.state)
        if chain != self._chain:
            self._chain = chain
            # Whoever waits is woken once; who comes later waits for the next news.
            self._news.set()
            self._news.clear()
            if self._on_change is not None:
                self._on_change(chain)


def read_chain(zookeeper: str, shard: str) -> Chain | None:
    """For programs without an event loop: the shard as it is now, or None if nobody has set it up."""

    async def read() -> Chain | None:
        async with Topology(zookeeper, shard) as topology:
            return topology.chain

    return asyncio.run(read())

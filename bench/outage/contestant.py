"""What is done to a cluster of three, and what each contestant must know to do it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable


class Contestant(Protocol):
    """A running cluster of three peers; peers go by their addresses."""

    @property
    def addresses(self) -> Sequence[str]: ...

    async def whole(self) -> tuple[str, str]:
        """Wait until all three are in place and replicate; the primary's address and the synchronous standby's."""

    async def kill_postmaster(self, address: str) -> None:
        """SIGKILL PostgreSQL's first process; who watches over it lives on."""

    async def kill_peer(self, address: str) -> None:
        """SIGKILL all processes of a peer at one moment; they stay down."""

    async def pause_peer(self, address: str) -> None:
        """SIGSTOP all processes of a peer."""

    async def terminate(self, address: str) -> None:
        """SIGTERM the daemon, as a service manager that stops it; it stays down."""

    async def promote(self, primary: str, sync: str, /) -> None:
        """What an operator types to make the synchronous standby the primary."""

    async def bring_back(self, address: str) -> None:
        """Whatever was done to the peer: it runs again."""

    def spans(self, clock: float, moment: float, began: float, ended: float) -> list[str]:
        """Where the time went (`bench.outage.spans`), if the contestant says so."""


@runtime_checkable
class Daemons(Contestant, Protocol):
    """A contestant with a daemon beside every PostgreSQL, which `terminate` stops together with its PostgreSQL."""

    @property
    def zookeeper(self) -> str:
        """Host and port of the one server."""

    def daemon(self, address: str) -> int:
        """The process of a peer's daemon."""

    def replica_check(self, address: str) -> str:
        """The URL that answers 200 when a load balancer may send queries to this standby."""


class Entry(Protocol):
    """A contestant that can be started."""

    @property
    def name(self) -> str: ...

    def cluster(self) -> AbstractAsyncContextManager[Contestant]: ...

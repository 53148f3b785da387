"""What is done to a cluster, in the words of the table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.outage.contestant import Contestant


@dataclass(frozen=True)
class Event:
    """One row of the table."""

    name: str
    do: Callable[[Contestant, str, str], Awaitable[None]]
    """Given the cluster, its primary and its synchronous standby."""
    harms_sync: bool = False
    """It is the standby that must be brought back afterwards."""


EVENTS = {
    "kill-postmaster": Event("SIGKILL of the primary's postmaster", lambda c, primary, _: c.kill_postmaster(primary)),
    "kill-peer": Event("SIGKILL of all of the primary's processes", lambda c, primary, _: c.kill_peer(primary)),
    "pause-peer": Event("SIGSTOP of all of the primary's processes", lambda c, primary, _: c.pause_peer(primary)),
    "terminate": Event("SIGTERM of the primary's sitter", lambda c, primary, _: c.terminate(primary)),
    "promote": Event("planned promotion of the sync", lambda c, primary, sync: c.promote(primary, sync)),
    "kill-sync": Event("SIGKILL of all of the sync's processes", lambda c, _, sync: c.kill_peer(sync), harms_sync=True),
}

"""What a sitter tells the world about itself: one immutable report, remade at every turn of the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manatee.cluster import Role


@dataclass(frozen=True)
class Report:
    """The sitter at one moment, for the status server."""

    role: Role | None = None
    generation: int = 0
    healthy: bool = False
    """PostgreSQL answered the last health check."""
    writable: bool = False
    """It is the primary, its sync confirms, and it lets clients write."""
    serving: bool = False
    ready: bool = False
    session: bool = False
    """ZooKeeper is connected."""
    lag_bytes: int | None = None
    """Of a standby: how much WAL its upstream has that is not replayed here."""
    lag_seconds: float | None = None
    """Of a standby: the age of the last commit replayed, 0 when nothing is waiting."""
    downstream_lag_bytes: Mapping[str, int] = field(default_factory=dict)
    """Per peer that streams from here: how much WAL it has not flushed yet."""
    restarts: int = 0
    """How often PostgreSQL was restarted after it had died."""
    restore: Mapping[str, Any] | None = None
    """The running or last restore."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """All of it, as `/state` shows it."""

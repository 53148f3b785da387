"""Loopback addresses for what is measured, in another network where `$BENCH_NETWORK` (as `127.32`) says so."""

from __future__ import annotations

import os

NETWORK = os.environ.get("BENCH_NETWORK", "127.32")


def address(part: int, host: int) -> str:
    """One address of one contestant's part of the network."""
    return f"{NETWORK}.{part}.{host}"


def peers(part: int, count: int = 3) -> tuple[str, ...]:
    """The peers' addresses; the one before them is the ZooKeeper server's."""
    return tuple(address(part, host) for host in range(2, 2 + count))

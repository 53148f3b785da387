"""`backup.bandwidth_limit`: how many bytes may leave now, all streams together.

A token bucket that holds at most a tenth of a second's bytes, so that no pause is made up for by a burst. Who waits is
served in the order of asking, a slice at a time: streams share the limit evenly.
"""

from __future__ import annotations

import asyncio
import time

_SLICES = 20
"""Per second."""


class Bandwidth:
    """`limit` is in bytes per second; None is no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._slice = max(1, (limit or 0) // _SLICES)
        self._held = 0.0
        self._counted = time.monotonic()
        self._turn = asyncio.Lock()

    @property
    def unlimited(self) -> bool:
        return self._limit is None

    async def reserve(self, wanted: int) -> int:
        """Between 1 and `wanted` bytes that may be sent, once there are some. What is not sent goes to `give_back`."""
        if self._limit is None:
            return wanted
        async with self._turn:
            share = min(wanted, self._slice)
            while (missing := share - self._count()) > 0:
                await asyncio.sleep(missing / self._limit)
            self._held -= share
        return share

    def give_back(self, unused: int) -> None:
        """Of what was reserved."""
        if self._limit is not None:
            self._held += unused

    def _count(self) -> float:
        assert self._limit is not None
        now = time.monotonic()
        self._held = min(self._held + (now - self._counted) * self._limit, 2.0 * self._slice)
        self._counted = now
        return self._held

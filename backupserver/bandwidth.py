"""`backup.bandwidth_limit`: how many bytes may leave now, all streams together.

A token bucket that holds at most a tenth of a second's bytes, so that no pause is made up for by a burst. Who waits is
served in the order of asking, a slice at a time: streams share the limit evenly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_SLICES = 20
"""Per second."""


class Bandwidth:
    """`limit` gives the bytes per second that hold now, or None for no limit: settings can change."""

    def __init__(self, limit: Callable[[], int | None]) -> None:
        self._limit = limit
        self._held = 0.0
        self._counted = time.monotonic()
        self._turn = asyncio.Lock()

    @property
    def unlimited(self) -> bool:
        return self._limit() is None

    async def reserve(self, wanted: int) -> int:
        """Between 1 and `wanted` bytes that may be sent, once there are some. What is not sent goes to `give_back`."""
        async with self._turn:
            while (limit := self._limit()) is not None:
                slice_ = max(1, limit // _SLICES)
                share = min(wanted, slice_)
                missing = share - self._count(limit, 2.0 * slice_)
                if missing <= 0:
                    self._held -= share
                    return share
                await asyncio.sleep(missing / limit)
        return wanted

    def give_back(self, unused: int) -> None:
        """Of what was reserved."""
        self._held += unused

    def _count(self, limit: int, most: float) -> float:
        now = time.monotonic()
        self._held = min(self._held + (now - self._counted) * limit, most)
        self._counted = now
        return self._held

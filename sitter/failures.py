"""What has gone wrong with PostgreSQL here: why, how often, for how long, and how long to wait before the next attempt.

A server that dies as soon as it is up (a full disk does that) is as good as one that does not come up: its times down
add up until it has been up for `STEADY` seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

STEADY = 10.0
"""Seconds of being up after which the trouble is over."""

AT_ONCE = 1.0
"""Seconds of being up after which it is restarted at once; one that dies earlier is given more and more time."""

PAUSE = 0.2
PAUSE_MAX = 10.0
"""Seconds before it is started again when it has died early: the first time, doubling up to the last. An attempt costs
half a second of a core."""

FLAPPING = 3
"""Failures in a row after which a server that is up is not relied on before it has been up for long."""


@dataclass(frozen=True)
class Failure:
    """One of them."""

    cause: str
    """In one word, for a metric: see `sitter.postgres.causes`."""
    detail: str
    at: float
    """Seconds since the epoch."""


class Failures:
    """Of this peer's PostgreSQL, since the sitter began."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By cause."""
        self.last: Failure | None = None
        self.in_a_row = 0
        self._early = 0
        self._down_since: float | None = None
        self._down_before = 0.0
        self._up_since: float | None = None

    @property
    def since(self) -> float | None:
        """Since when, by the monotonic clock, it has been failing, as if without interruption; None while it is up."""
        return None if self._down_since is None else self._down_since - self._down_before

    @property
    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        return min(PAUSE * 2 ** (self._early - 1), PAUSE_MAX) if self._early else 0.0

    @property
    def flapping(self) -> bool:
        """It is up again, and has been so too often to be relied on yet."""
        up = self._up_since is not None and time.monotonic() - self._up_since < STEADY
        return up and self.in_a_row >= FLAPPING

    @property
    def lasting(self) -> Failure | None:
        """Why it is down, or why it was a moment ago; None when the trouble is over."""
        over = self._up_since is not None and time.monotonic() - self._up_since >= STEADY
        return None if over or self.in_a_row == 0 else self.last

    def failed(self, cause: str, detail: str) -> None:
        """It has died, or could not be started."""
        now = time.monotonic()
        up = now - self._up_since if self._up_since is not None else 0.0
        if up >= STEADY:
            self.in_a_row, self._down_before = 0, 0.0
        self._early = 0 if up >= AT_ONCE or self.in_a_row == 0 else self._early + 1
        self._up_since = None
        self._down_since = now if self._down_since is None else self._down_since
        self.in_a_row += 1
        self.counts[cause] += 1
        self.last = Failure(cause, detail, time.time())

    def came_up(self) -> None:
        """It lets us in."""
        now = time.monotonic()
        if self._down_since is not None:
            self._down_before += now - self._down_since
        self._down_since = None
        if self._up_since is None:
            self._up_since = now

    def forgive(self) -> None:
        """Give it as long as before to come up; attempts stay as rare as they have become."""
        self._down_since, self._down_before = None, 0.0

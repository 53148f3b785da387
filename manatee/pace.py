"""How fast something has been moving lately, and how long the rest will take at that pace."""

from __future__ import annotations

from collections import deque

WINDOW = 10.0
"""Seconds that are looked at: long enough for a steady figure, short enough to show what changes."""
_STEP = 0.5


class Pace:
    """Fed with how far it has come, in bytes, and the moment, in seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, moment: float, done: int) -> None:
        """`done` bytes were through by then. Less than before is a new beginning."""
        marks = self._marks
        if marks and done < marks[-1][1]:
            marks.clear()
        if len(marks) > 1 and moment - marks[-2][0] < _STEP:
            marks.pop()
        marks.append((moment, done))
        while len(marks) > 2 and moment - marks[1][0] >= WINDOW:
            marks.popleft()

    def rate(self, moment: float) -> int | None:
        """Bytes per second up to this moment; None until there is something to go by."""
        if not self._marks:
            return None
        begun, before = self._marks[0]
        if moment - begun < _STEP:
            return None
        return round((self._marks[-1][1] - before) / (moment - begun))


def remaining(done: int, total: int | None, rate: int | None) -> float | None:
    """Seconds until `total`, at `rate`; None if that cannot be said, as when an estimate was too low.

    >>> remaining(100, 300, 10), remaining(100, None, 10), remaining(100, 300, 0), remaining(300, 300, 10)
    (20.0, None, None, None)
    """
    if total is None or not rate or done >= total:
        return None
    return round((total - done) / rate, 1)

"""What the figures are meant to be."""

from __future__ import annotations

from dataclasses import dataclass

from bench.outage.manatee import SESSION_TIMEOUT
from bench.results import OURS, Results


@dataclass(frozen=True)
class Target:
    """A limit for the median of one cell."""

    section: str
    row: str
    limit: float
    at_least: bool = False
    column: str = OURS

    def words(self, digits: int, unit: str) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.limit:.{digits}f} {unit}"

    def met(self, median: float) -> bool:
        return median >= self.limit if self.at_least else median <= self.limit


TARGETS = (
    Target("decide", "takeover", 100),
    Target("outage", "kill-postmaster", 1.0),
    Target("outage", "kill-peer", 0.5),
    Target("outage", "pause-peer", SESSION_TIMEOUT + 0.5),
    Target("outage", "terminate", 0.3),
    Target("outage", "promote", 0.3),
    Target("footprint", "idle-cpu", 0.3),
    Target("footprint", "idle-memory", 46),
    Target("bootstrap", "plain-share", 0.9, at_least=True),
    Target("bootstrap", "tls-share", 0.9, at_least=True),
)


def verdict(target: Target, results: Results) -> bool | None:
    """Whether a target is met; None if it was not measured."""
    section = results.sections.get(target.section)
    row = section.rows.get(target.row) if section else None
    if row is None or not row.values.get(target.column):
        return None
    return target.met(row.median(target.column))

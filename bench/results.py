"""What was measured, in one form for all sections: rows, columns, and in each cell the single values.

`docs/performance.json` holds the last results of every section, each with its own date, machine and versions, so that
one section can be repeated alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

OURS = "manatee"
"""The column that the targets are about."""

BUSY = 10.0
"""Per cent of all processors; above that figures are not to be trusted."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Document):
    """One figure of every contestant."""

    what: str
    unit: str
    digits: int = 2
    """After the point, in the table."""
    values: Mapping[str, tuple[float, ...]]
    """The single values by column."""

    def median(self, column: str) -> float:
        return statistics.median(self.values[column])

    def spread(self, column: str) -> tuple[float, float]:
        return min(self.values[column]), max(self.values[column])


class Machine(_Document):
    """What a section was measured on, and when."""

    date: str
    """UTC, to the minute."""
    commit: str
    processor: str
    cores: int
    memory: str
    kernel: str
    versions: Mapping[str, str]
    load: float
    """The load average of the minute before the whole run began."""
    used: float
    """Per cent of all processors that others used just before this section began."""

    @property
    def busy(self) -> bool:
        """Whether somebody else worked here, too."""
        return self.used > BUSY


class Section(_Document):
    """One of the things that are measured."""

    columns: Mapping[str, str]
    """Their titles by key, in order."""
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()
    """How it was measured, a sentence each."""
    missing: int = 0
    """Acknowledged rows that were not there at the end."""
    failed: tuple[str, ...] = ()
    """What went wrong, and how: rounds that do not count."""
    spans: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """By row: where the time of our median round went, a line each."""
    machine: Machine | None = None


class Results(_Document):
    """All sections that were ever measured."""

    sections: Mapping[str, Section] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Those in a file; none if there is no file. Raises pydantic's ValidationError."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Raises OSError."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    def merged(self, name: str, section: Section) -> Results:
        """These, with one section replaced."""
        return Results(sections={**self.sections, name: section})


def differences(before: Section, now: Section) -> list[str]:
    """Which medians lie outside the spread recorded before, a line each; compared as the table shows them.

    A figure of which one value is recorded has no spread, and is left out.
    """
    found = []
    for key, row in now.rows.items():
        recorded = before.rows.get(key)
        for column in row.values:
            if recorded is None or len(recorded.values.get(column, ())) < 2:
                continue
            least, most = (round(value, row.digits) for value in recorded.spread(column))
            median = round(row.median(column), row.digits)
            if not least <= median <= most:
                was = f"{recorded.median(column):.{row.digits}f} ({least:.{row.digits}f} to {most:.{row.digits}f})"
                found.append(f"{row.what}, {now.columns[column]}: {median:.{row.digits}f} {row.unit}, recorded {was}")
    return found

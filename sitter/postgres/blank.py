"""Segment files of the log that a receiver made and never wrote: with one of them a standby can end in a loop.

When a standby whose log ends in the segment in which a newer timeline begins is about to receive that timeline, it
makes the segment's file first. If it dies before the first byte arrives, PostgreSQL (15 and 18, seen) prefers that file
at the next start, finds nothing in it, asks for the older timeline, and ends with `WAL location ... belongs to timeline
1, but previous recovered WAL file came from timeline 2`: now, and at every start after it.
"""

from __future__ import annotations

from pathlib import Path

from manatee.log import Logger
from sitter.postgres.account import remove_durably
from sitter.postgres.wal_end import history

_NEVER_WRITTEN = bytes(24)
"""Where the header of the first page would be."""


def remove_blank(data_dir: Path, segment_size: int, log: Logger) -> None:
    """Remove the segments in which timelines begin, if nothing was ever written to them. PostgreSQL must not run.

    Raises OSError, or BadWal if a history file is garbled.
    """
    for file in sorted((data_dir / "pg_wal").glob("????????.history")):
        timeline = int(file.stem, 16)
        high, low = divmod(history(data_dir, timeline)[-1].begin // segment_size, (1 << 32) // segment_size)
        segment = file.with_name(f"{timeline:08X}{high:08X}{low:08X}")
        if segment.exists() and _is_blank(segment):
            log.warning("removing a segment of the log that was never written", segment=segment.name)
            remove_durably(segment)


def _is_blank(segment: Path) -> bool:
    with segment.open("rb") as content:
        return content.read(len(_NEVER_WRITTEN)) == _NEVER_WRITTEN

"""Where the write-ahead log in a data directory ends: after its last complete record that recovery would reach.

`pg_waldump` finds it, reading on from a record that is known to be one. Reading has to be sequential: in the page that
was written last, what lies behind the newest record may be a whole record of the segment's former life, recognised as
stale only because it does not point back to the record before it. `pg_waldump` finds the first record of a page by the
page's header and goes on from there, so it is started in a page that begins before a position that is surely valid.

The log of a timeline goes on from its parent's (documentation, "Timelines"); files are named after the timeline that
they were written on, so each timeline of the history is read from its own files.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import versions
from sitter.postgres.errors import BadWal, ToolFailed
from sitter.postgres.tools import run_tool

PAGE = 8192
"""Bytes of a WAL page (XLOG_BLCKSZ): what every packaged PostgreSQL is built with."""

TAIL = 1 << 16
"""Bytes kept of the beginning and of the end of a list of records."""

_PAGE_HEADER, _LONG_PAGE_HEADER = 24, 40
"""Bytes of a page's header, and of the header of the first page of a segment."""

_NO_LENGTH = bytes(4)
"""Where a record would begin with its length, or a page with its magic number."""

_BACK_OFF = (0, 1, 16, 256)
"""Pages before the known position in which a record is looked for to start with; after that, all the way from redo."""

_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_BETWEEN = re.compile(r"^WAL statistics between (\S+) and (\S+):", re.MULTILINE)
_END_OF_LOG = re.compile(
    r"error in WAL record at (?!.*out of memory)|could not find a valid record after"
    r"|WAL segment size must be a power of two"
)
"""What pg_waldump (13 to 18) ends with where recovery would end: bytes that are no record, a segment that was never
written. It has the same exit status for a file that it cannot open or read, and then may tell nothing of the records
before it: so even for a segment that is too short, which PostgreSQL never makes."""
_RECORD = re.compile(r"len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*\d+, lsn: (\S+), prev \S+, desc: (\S+)")


class Checkpoint(Protocol):
    """Where recovery would begin: the control file, or what the running server says of it."""

    @property
    def timeline(self) -> int: ...
    @property
    def checkpoint(self) -> Lsn: ...
    @property
    def redo(self) -> Lsn: ...
    @property
    def wal_segment_size(self) -> int: ...


@dataclass(frozen=True)
class WalEnd:
    """Where a log ends."""

    timeline: int
    """Of the files that the last record was read from."""
    lsn: Lsn
    """The position after the last complete record."""


@dataclass(frozen=True)
class Stretch:
    """A timeline's part of a history."""

    timeline: int
    begin: Lsn
    end: Lsn | None
    """Where the next timeline forks off; None for the newest."""


def parse_history(timeline: int, content: str) -> tuple[Stretch, ...]:
    """A timeline's history, the oldest first, from the text of its history file (empty for timeline 1).

    Raises BadWal if it is garbled.
    """
    stretches: list[Stretch] = []
    begin = Lsn(0)
    for line in content.splitlines():
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        try:
            older, switch = int(fields[0]), Lsn.parse(fields[1])
        except (ValueError, IndexError):
            raise BadWal(f'the history of timeline {timeline} is garbled at "{line.strip()}"') from None
        stretches.append(Stretch(older, begin, switch))
        begin = switch
    return (*stretches, Stretch(timeline, begin, None))


def history(data_dir: Path, timeline: int) -> tuple[Stretch, ...]:
    """The history of `timeline` from the file in `pg_wal`; raises BadWal if there is none and it is not timeline 1."""
    path = data_dir / "pg_wal" / f"{timeline:08X}.history"
    try:
        return parse_history(timeline, path.read_text() if timeline > 1 else "")
    except (OSError, UnicodeDecodeError) as error:
        raise BadWal(f"the history of timeline {timeline} cannot be read: {error}") from error


class _Log:
    """The segment files of one data directory, as they were found."""

    def __init__(self, data_dir: Path, segment_size: int) -> None:
        self.data_dir = data_dir
        self.segment_size = segment_size
        self.segments: dict[int, set[int]] = {}
        self.histories: list[int] = []
        try:
            names = [entry.name for entry in (data_dir / "pg_wal").iterdir()]
        except OSError as error:
            raise BadWal(f"the write-ahead log in {data_dir} cannot be read: {error.strerror}") from error
        for name in names:
            if match := _SEGMENT.fullmatch(name):
                number = int(match[2], 16) * ((1 << 32) // segment_size) + int(match[3], 16)
                self.segments.setdefault(int(match[1], 16), set()).add(number)
            elif match := _HISTORY.fullmatch(name):
                self.histories.append(int(match[1], 16))

    def number(self, position: int) -> int:
        return position // self.segment_size

    def name(self, timeline: int, position: int) -> str:
        """Of the file that holds `position`."""
        high, low = divmod(self.number(position), (1 << 32) // self.segment_size)
        return f"{timeline:08X}{high:08X}{low:08X}"

    def has(self, timeline: int, position: int) -> bool:
        return self.number(position) in self.segments.get(timeline, ())

    def limit(self, timeline: int, position: int) -> Lsn:
        """The end of the unbroken row of this timeline's segments from the one that holds `position`."""
        number = self.number(position)
        while number in self.segments.get(timeline, ()):
            number += 1
        return Lsn(number * self.segment_size)

    def nothing_at(self, stretch: Stretch, position: Lsn) -> bool:
        """No record begins here, as a glance shows: it would begin with its length, and its page with a number.

        Mostly so where the segment is new; one that is used again holds old records there. False if it is not so, or
        not known.
        """
        if position < stretch.begin:
            return False
        try:
            with (self.data_dir / "pg_wal" / self.name(stretch.timeline, position)).open("rb") as segment:
                segment.seek(position % self.segment_size)
                return segment.read(len(_NO_LENGTH)) == _NO_LENGTH
        except OSError:
            return False

    def lineage(self, control: Checkpoint) -> tuple[Stretch, ...]:
        """The history that recovery would follow: of the newest timeline that goes on from ours and has WAL here."""
        for timeline in sorted(self.histories, reverse=True):
            if timeline <= control.timeline:
                break
            stretches = history(self.data_dir, timeline)
            ours = [one for one in stretches if one.timeline == control.timeline]
            descends = ours and ours[0].end is not None and ours[0].end > control.checkpoint
            if descends and self.has(timeline, stretches[-1].begin):
                return stretches
        return history(self.data_dir, control.timeline)


async def find(
    settings: Settings, control: Checkpoint, *, version: int, known: Lsn | None = None, timeout: float | None = None
) -> WalEnd:
    """Where the log of this peer's data directory ends; PostgreSQL may run or not.

    Reads from the latest checkpoint's redo position (a gigabyte takes seconds), or from shortly before `known`, the end
    of a record up to which the log is surely valid: the replay position of a standby. `version` is the programs' major
    version. Raises BadWal, or ToolFailed if a part of the log cannot be read, or if it takes longer than `timeout`
    seconds (`postgres.query_timeout`).
    """
    limit = timeout if timeout is not None else settings.postgres.query_timeout
    reader = _Reader(settings, _Log(settings.storage.data_dir, control.wal_segment_size), version, limit)
    return await reader.end(control, known)


class _Reader:
    def __init__(self, settings: Settings, log: _Log, version: int, timeout: float) -> None:
        self._settings = settings
        self._log = log
        self._version = version
        self._deadline = time.monotonic() + timeout

    async def end(self, control: Checkpoint, known: Lsn | None) -> WalEnd:
        at = known if known is not None else control.redo
        lineage = self._log.lineage(control)
        remaining = [one for one in lineage if one.end is None or one.end > at or one is lineage[-1]]
        found = WalEnd(remaining[0].timeline, at)
        valid_start = known is None
        for stretch in remaining:
            if not self._log.has(stretch.timeline, max(stretch.begin, found.lsn)):
                continue  # a timeline that soon ended may be in its successor's files alone
            end = await self._read(stretch, control, found.lsn, valid_start=valid_start)
            if end > found.lsn:
                found = WalEnd(stretch.timeline, end)
            valid_start = False
        if known is None and found.lsn <= control.checkpoint:
            raise BadWal(f"the log ends at {found.lsn}, before the latest checkpoint at {control.checkpoint}")
        return found

    async def _read(self, stretch: Stretch, control: Checkpoint, valid: Lsn, *, valid_start: bool) -> Lsn:
        """The end of the records on this stretch, all of which up to `valid` are; `valid` if nothing follows it."""
        if not valid_start and self._log.nothing_at(stretch, valid):
            return valid
        size = self._log.segment_size
        limit = self._log.limit(stretch.timeline, valid)
        limit = limit if stretch.end is None else min(limit, stretch.end)
        first_held = self._first_held(stretch.timeline, valid)
        lowest = max(first_held, stretch.begin // size * size, control.redo if first_held <= control.redo else 0)
        starts = (
            [valid] if valid_start else [max(lowest, (valid - 1) // PAGE * PAGE - back * PAGE) for back in _BACK_OFF]
        )
        for start in dict.fromkeys([*starts, lowest]):
            first, end = await self._waldump(stretch.timeline, Lsn(start), limit)
            if first is not None and (first < valid or (valid_start and first <= control.checkpoint)):
                return max(valid, end)
            if start == lowest:
                # Nothing before `valid` begins in these files: what follows can only be the first record in them.
                surely = valid % size == 0 or start == control.redo
                return max(valid, end) if first is not None and surely else valid
        return valid

    def _first_held(self, timeline: int, position: int) -> int:
        """Where the unbroken row of this timeline's segments begins that holds `position`."""
        number = self._log.number(position)
        while number - 1 in self._log.segments.get(timeline, ()):
            number -= 1
        return number * self._log.segment_size

    async def _waldump(self, timeline: int, start: Lsn, limit: Lsn) -> tuple[Lsn | None, Lsn]:
        """The first record at or after `start`, None if there is none; and the end of the last one before `limit`."""
        if start >= limit:
            return None, start
        pg_wal = str(self._settings.storage.data_dir / "pg_wal")
        # Without names it asks any file for the size of segments, and gives up if that is one not written yet.
        names = (self._log.name(timeline, start), self._log.name(timeline, limit - 1))
        arguments = ("-p", pg_wal, "-s", str(start), "-e", str(limit), *names)
        statistics = self._version >= versions.WALDUMP_SAYS_ITS_END
        left = max(0.1, self._deadline - time.monotonic())
        try:
            output = await run_tool(
                self._settings, "pg_waldump", *arguments, *(["--stats"] if statistics else []), timeout=left, keep=TAIL
            )
        except ToolFailed as error:
            if error.status != 1 or not _END_OF_LOG.search(error.reason):
                raise  # the log may go on where it could not be read
            output = error.output
        if statistics:
            match = _BETWEEN.search(output)
            return (Lsn.parse(match[1]), Lsn.parse(match[2])) if match else (None, start)
        records = _RECORD.findall(output)
        if not records:
            return None, start
        length, lsn, kind = records[-1]
        return Lsn.parse(records[0][1]), record_end(Lsn.parse(lsn), int(length), self._log.segment_size, kind)


def record_end(begin: Lsn, length: int, segment_size: int, kind: str = "") -> Lsn:
    """Where a record of `length` bytes ends that begins at `begin`, page headers on its way included.

    For versions whose pg_waldump does not say (before 15). A `SWITCH` ends with its segment.
    """
    if kind.startswith("SWITCH"):
        return Lsn((begin // segment_size + 1) * segment_size)
    position = int(begin)
    left = -(-length // 8) * 8
    while True:
        room = PAGE - position % PAGE
        if left <= room:
            return Lsn(position + left)
        position += room
        left -= room
        position += _PAGE_HEADER if position % segment_size else _LONG_PAGE_HEADER

"""A digest of a range of the write-ahead log, so that two servers can find out whether they hold the same bytes.

A server that follows a timeline reads a segment from the newest timeline of that timeline's history which had begun by
then: the segment in which a timeline begins exists under both numbers, and the newer file begins with a copy of the
older one up to the switch point, old page headers included (PostgreSQL, `XLogFileReadAnyTLI`, `XLogInitNewTimeline`).
What a standby received is byte for byte what its upstream wrote, so the digests of a common history are equal.

A segment file is no proof that its bytes were written: files of old segments are renamed to future numbers and
written over. Every page in the range must therefore carry its own address (or lie behind a switch to the next segment,
where all is zero), and a file must still bear its name when it has been read. The tail of the last page cannot be
judged from the file: ask only for what is known to be flushed.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from manatee.lsn import Lsn

_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
_LONG_HEADER = struct.Struct("=HHIQI4xQII")
"""XLogLongPageHeaderData: magic, info, timeline, address, remaining length, system identifier, segment and page."""
_IS_LONG = 0x0002
_ADDRESS = struct.Struct("=Q")
_ADDRESS_AT = 8
_INFO_MASK, _SWITCH = 0xF0, 0x40
"""XLOG_SWITCH of the resource manager that has the number 0 (`pg_control.h`)."""
_CHUNK = 1 << 20


class WalError(Exception):
    """The log on disk cannot be used for what was asked; the message says which part of it and why."""


class WalMissing(WalError):
    """A part of the range is not held here: recycled, not received yet, or of a timeline that never came here."""


@dataclass(frozen=True)
class _Stretch:
    """A timeline's part of a history: from where it begins to where the next one does."""

    timeline: int
    begin: int
    end: int | None


@dataclass(frozen=True)
class _Geometry:
    segment: int
    page: int

    def name(self, timeline: int, number: int) -> str:
        per_id = (1 << 32) // self.segment
        return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def digest(data_dir: Path, timeline: int, start: Lsn, end: Lsn) -> str:
    """The sha256 (hexadecimal) of the WAL bytes from `start` up to `end`, as a server on `timeline` would read them.

    Reads files and blocks while it does: call it in a thread. Raises WalMissing for what is not held, WalError for
    files that cannot be made sense of, ValueError for a range that ends before it begins.
    """
    if end < start:
        raise ValueError(f"the range ends at {end}, before it begins at {start}")
    hashed = hashlib.sha256()
    if start == end:
        return hashed.hexdigest()
    wal = data_dir / "pg_wal"
    lineage = _lineage(wal, timeline)
    geometry = _geometry(wal)
    position = int(start)
    while position < end:
        number = position // geometry.segment
        stop = min(int(end), (number + 1) * geometry.segment)
        hashed = _add_part(hashed, wal, lineage, geometry, number, position, stop)
        position = stop
    return hashed.hexdigest()


def segment_size(data_dir: Path) -> int:
    """The size of a WAL segment in bytes, from the first page of one that is there; raises WalMissing, WalError."""
    return _geometry(data_dir / "pg_wal").segment


def _lineage(wal: Path, timeline: int) -> list[_Stretch]:
    """The timelines that lead to `timeline`, the newest first (format: the comment in `timeline.c`)."""
    if timeline < 1:
        raise ValueError(f"{timeline} is not a timeline: they begin at 1")
    stretches: list[_Stretch] = []
    begin = 0
    if timeline > 1:
        name = f"{timeline:08X}.history"
        try:
            lines = (wal / name).read_text().splitlines()
        except FileNotFoundError:
            raise WalMissing(f"timeline {timeline} is not known here: there is no {name}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise WalError(f"{name} cannot be read: {error}") from error
        for line in lines:
            fields = line.split("#", 1)[0].split()
            if not fields:
                continue
            try:
                older, switch = int(fields[0]), int(Lsn.parse(fields[1]))
            except (ValueError, IndexError):
                raise WalError(f'{name} is garbled at "{line.strip()}"') from None
            stretches.append(_Stretch(older, begin, switch))
            begin = switch
    stretches.append(_Stretch(timeline, begin, None))
    return stretches[::-1]


def _geometry(wal: Path) -> _Geometry:
    try:
        names = sorted(entry.name for entry in os.scandir(wal) if _SEGMENT_NAME.fullmatch(entry.name))
    except OSError as error:
        raise WalMissing(f"there is no write-ahead log in {wal}: {error.strerror}") from error
    for name in names:
        try:
            with (wal / name).open("rb") as file:
                header = file.read(_LONG_HEADER.size)
                size = os.fstat(file.fileno()).st_size
        except OSError:
            continue
        if len(header) < _LONG_HEADER.size:
            continue
        magic, info, *_, segment, page = _LONG_HEADER.unpack(header)
        if magic and info & _IS_LONG and segment == size and page and segment % page == 0:
            return _Geometry(segment, page)
    raise WalMissing(f"{wal} holds no complete segment file")


def _add_part(
    hashed: hashlib._Hash,
    wal: Path,
    lineage: list[_Stretch],
    geometry: _Geometry,
    number: int,
    start: int,
    stop: int,
) -> hashlib._Hash:
    """Add the bytes from `start` to `stop`, both in segment `number`, from the newest file that holds them."""
    reason = f"no timeline had begun by {Lsn(start)}"
    missing = None
    for stretch in lineage:
        if stretch.begin // geometry.segment > number:
            continue
        if stretch.end is not None and stop > stretch.end:
            break
        name = geometry.name(stretch.timeline, number)
        so_far = hashed.copy()
        try:
            _read_part(so_far, wal / name, geometry, number * geometry.segment, start, stop)
        except WalMissing as error:
            missing = missing or error
            continue
        return so_far
    raise missing or WalMissing(reason)


def _read_part(hashed: hashlib._Hash, path: Path, geometry: _Geometry, base: int, start: int, stop: int) -> None:
    """Add the bytes from `start` to `stop` of the file whose first byte is at `base`."""
    page = geometry.page
    try:
        with path.open("rb", buffering=0) as file:
            position = start - start % page
            while position < stop:
                file.seek(position - base)
                chunk = file.read(min(_CHUNK, stop - position + -(stop - position) % page))
                whole = len(chunk) - len(chunk) % page
                if not whole:
                    raise WalMissing(f"{path.name} ends at {Lsn(position)}")
                foreign = _first_foreign_page(chunk[:whole], page, position)
                rest = b"" if foreign is None else chunk[foreign - position :]
                if foreign is not None and not _is_after_switch(file, foreign - base, page, rest):
                    raise WalMissing(f"{Lsn(foreign)} is not held here: {path.name} has not been written so far")
                hashed.update(chunk[max(0, start - position) : min(whole, stop - position)])
                position += whole
            if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                raise WalMissing(f"{path.name} was recycled while it was read")
    except FileNotFoundError:
        raise WalMissing(f"{Lsn(start)} is not held here: there is no {path.name}") from None
    except OSError as error:
        raise WalError(f"{path.name} cannot be read: {error}") from error


def _first_foreign_page(chunk: bytes, page: int, position: int) -> int | None:
    """The position of the first page that does not carry its own address."""
    for offset in range(0, len(chunk), page):
        (address,) = _ADDRESS.unpack_from(chunk, offset + _ADDRESS_AT)
        if address != position + offset:
            return position + offset
    return None


def _is_after_switch(file: BinaryIO, offset: int, page: int, rest: bytes) -> bool:
    """Whether the `rest` of the segment at `offset` is the nothing that follows a switch to the next segment.

    After a switch record the segment is filled with zeros, page headers included (`CopyXLogRecordToWAL`). A segment
    that is still being written ends in zeros too, but not behind such a record.
    """
    if any(rest):
        return False
    while offset >= page:
        offset -= page
        file.seek(offset)
        said = file.read(page).rstrip(b"\0")
        if said:
            # A switch has no data: the last eight bytes of its header are info, resource manager, padding and CRC.
            last = said[len(said) - 1 & ~7 :]
            return last[0] & _INFO_MASK == _SWITCH and not any(last[1:4])
    return False

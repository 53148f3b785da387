"""The half of a record at the end of a standby's log: what its upstream will never complete is taken away.

When a primary dies while it writes a long record, at the end of a segment above all (a full disk does just that), its
standbys may hold the record's beginning. The next primary goes on from the end of the last complete record, on a new
timeline; but a standby with such a beginning asks for the log from where its half ends, which the new primary has not
written yet: "requested starting point ... is ahead of the WAL flush position of this server". It would wait until that
much has been written, and a primary that waits for it as its sync writes nothing.

What is taken away was never a record, so nobody was told that it is safe. A stream begins anew at the beginning of a
segment, so what an upstream does still hold of it comes again.
"""

from __future__ import annotations

import os
from pathlib import Path

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import controldata, versions, wal_end
from sitter.postgres.errors import BadWal

SIGNS = ("is ahead of the WAL flush position of this server", "is ahead of the upstream server")
"""What the log of a standby says that asks for more than its upstream has: where it tries again and again, and where it
waits (PostgreSQL 18.6, whose receiver says `streaming` of itself while it does)."""

FED = ("started streaming WAL from primary", "restarted WAL streaming")
"""What it says when it gets what it has asked for."""

_CHUNK = 1 << 16


async def cut(settings: Settings, *, replayed: Lsn, only_look: bool = False) -> bool:
    """Zero what lies behind the last complete record in its segment, durably; whether there was anything but zeros.

    PostgreSQL must not run, unless it is `only_look`. What it has `replayed`, or written to its data files, were
    records: if the log seems to end before that, BadWal is raised. Raises BadWal, ToolFailed, OSError.
    """
    timeout = settings.postgres.start_timeout
    control = await controldata.read(settings, timeout=timeout)
    version = await versions.of_programs(settings, timeout=timeout)
    end = await wal_end.find(settings, control, version=version, timeout=timeout)
    surely = max(replayed, control.min_recovery_end)
    if end.lsn < surely:
        raise BadWal(f"the log seems to end at {end.lsn}, but held complete records up to {surely}: it is left alone")
    path, offset = _place(settings.storage.data_dir, end, control.wal_segment_size)
    if offset == 0 or not path.exists():
        return False
    with path.open("r+b") as segment:
        if os.fstat(segment.fileno()).st_size != control.wal_segment_size:
            raise BadWal(f"{path} is not as long as a segment of the log is")
        segment.seek(offset)
        if not any(any(chunk) for chunk in iter(lambda: segment.read(_CHUNK), b"")):
            return False
        if only_look:
            return True
        segment.seek(offset)
        left = control.wal_segment_size - offset
        while left > 0:
            left -= segment.write(bytes(min(_CHUNK, left)))
        segment.flush()
        os.fsync(segment.fileno())
    return True


def _place(data_dir: Path, end: wal_end.WalEnd, segment_size: int) -> tuple[Path, int]:
    """The segment file that holds a position, and where in it."""
    number, offset = divmod(int(end.lsn), segment_size)
    high, low = divmod(number, (1 << 32) // segment_size)
    return data_dir / "pg_wal" / f"{end.timeline:08X}{high:08X}{low:08X}", offset

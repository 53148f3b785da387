"""What a data directory says of itself in its control file, by pg_controldata; the server may run or not."""

from __future__ import annotations

from dataclasses import dataclass

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres.errors import ToolFailed
from sitter.postgres.tools import run_tool

FLOORS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""Settings that must not be smaller on a standby than they were on its primary, and pg_controldata's words for them."""


@dataclass(frozen=True)
class ControlData:
    """One reading of the control file."""

    system_identifier: str
    state: str
    """Cluster state in PostgreSQL's words: `in production`, `shut down`, `in archive recovery`, ..."""
    timeline: int
    """Of the latest checkpoint; replay may have gone on to a newer one."""
    checkpoint: Lsn
    """Where the latest checkpoint's record begins (on a standby: of the latest restartpoint)."""
    redo: Lsn
    """Where recovery would begin; a record begins there, and all of the WAL from there on is kept."""
    min_recovery_end: Lsn
    """Recovery must get at least here before the data are consistent; 0/0 when there is no such place."""
    min_recovery_timeline: int
    floors: dict[str, int]
    """The primary's values of the settings in `FLOORS`, as far as the WAL has been replayed."""
    catalog_version: str
    wal_segment_size: int
    """Bytes."""
    checksums: bool

    @property
    def cleanly_stopped(self) -> bool:
        return self.state in ("shut down", "shut down in recovery")


async def read(settings: Settings, *, timeout: float | None = None) -> ControlData:
    """Read the control file of `settings.storage.data_dir`; raises ToolFailed (no data directory, a torn file)."""
    return parse(await run_tool(settings, "pg_controldata", "-D", str(settings.storage.data_dir), timeout=timeout))


def parse(output: str) -> ControlData:
    """The output of pg_controldata under LC_ALL=C; raises ToolFailed if a line is missing or illegible."""
    lines = dict(line.split(":", 1) for line in output.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in lines.items()}
    try:
        return ControlData(
            system_identifier=values["Database system identifier"],
            state=values["Database cluster state"],
            timeline=int(values["Latest checkpoint's TimeLineID"]),
            checkpoint=Lsn.parse(values["Latest checkpoint location"]),
            redo=Lsn.parse(values["Latest checkpoint's REDO location"]),
            min_recovery_end=Lsn.parse(values["Minimum recovery ending location"]),
            min_recovery_timeline=int(values["Min recovery ending loc's timeline"]),
            floors={name: int(values[words]) for name, words in FLOORS.items()},
            catalog_version=values["Catalog version number"],
            wal_segment_size=int(values["Bytes per WAL segment"]),
            checksums=values["Data page checksum version"] != "0",
        )
    except (KeyError, ValueError) as error:
        raise ToolFailed("pg_controldata", f"its output is not understood: {error}", output=output) from error

"""Which PostgreSQL this is: decided once, from the programs in `postgres.bin_dir` and from the data directory.

Everything in which the versions from `OLDEST` to `NEWEST` differ for us stands here by name; what uses it compares with
the name. What the sitter rests on and all of them have: `primary_conninfo` that a reload changes (13), `pg_promote`
(12), `wal_status` of a replication slot (13). A standby whose settings its primary has outgrown pauses its replay from
14 on and ends before; either way it is started anew with greater ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from manatee.config import Settings
from sitter.postgres.errors import ToolFailed, WrongVersion
from sitter.postgres.tools import run_tool

OLDEST, NEWEST = 13, 18
"""The major versions that the sitter runs."""

WALDUMP_SAYS_ITS_END = 15
"""From here on `pg_waldump --stats` says between which positions it has read."""

NO_TRIGGER_FILE = 16
"""From here on `promote_trigger_file` is gone: nothing on disk promotes a standby behind our back."""

FORBIDS_ALTER_SYSTEM = 17
"""From here on `allow_alter_system` can be off."""

SLOTS_TIME_OUT = 18
"""From here on there is `idle_replication_slot_timeout`."""

_known: dict[tuple[Path, int, int, int], int] = {}
"""By the `postgres` program's path, inode, size and time: one that was replaced is asked again."""


async def of_programs(settings: Settings, *, timeout: float | None = None) -> int:
    """The major version of the `postgres` program. Raises ToolFailed; WrongVersion if the sitter does not run it."""
    program = settings.postgres.bin_dir / "postgres"
    try:
        status = program.stat()
    except OSError as error:
        raise ToolFailed("postgres", f"{program} cannot be run: {error.strerror}: see postgres.bin_dir") from error
    key = (program, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _known:
        output = await run_tool(settings, "postgres", "--version", timeout=timeout)
        match = re.search(r"\(PostgreSQL\) (\d+)", output)
        if match is None:
            raise ToolFailed("postgres", f'its version is not understood: "{output.strip()}"', output=output)
        _known[key] = int(match[1])
    found = _known[key]
    if not OLDEST <= found <= NEWEST:
        raise WrongVersion(
            f"postgres.bin_dir = '{settings.postgres.bin_dir}': expected PostgreSQL {OLDEST} to {NEWEST}, found {found}"
        )
    return found


def of_data(data_dir: Path) -> int | None:
    """The major version that a data directory belongs to; None if it holds no database."""
    try:
        return int((data_dir / "PG_VERSION").read_text().strip())
    except (OSError, ValueError):
        return None


async def check(settings: Settings, *, timeout: float | None = None) -> int:
    """The major version of programs and data, which must be one. Raises WrongVersion, ToolFailed."""
    programs = await of_programs(settings, timeout=timeout)
    data = of_data(settings.storage.data_dir)
    if data not in (None, programs):
        raise WrongVersion(
            f"{settings.storage.data_dir} belongs to PostgreSQL {data}, and postgres.bin_dir = "
            f"'{settings.postgres.bin_dir}' holds PostgreSQL {programs}: set postgres.bin_dir to the programs of {data}"
            ', or follow "Another major version" in docs/settings.md'
        )
    return programs

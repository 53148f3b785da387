"""Major versions: of the programs in `postgres.bin_dir`, and of a data directory."""

from __future__ import annotations

import re
from pathlib import Path

from manatee.config import Settings
from sitter.postgres.errors import ToolFailed
from sitter.postgres.tools import run_tool


async def of_programs(settings: Settings, *, timeout: float | None = None) -> int:
    """The major version of the `postgres` program; raises ToolFailed."""
    output = await run_tool(settings, "postgres", "--version", timeout=timeout)
    match = re.search(r"\(PostgreSQL\) (\d+)", output)
    if match is None:
        raise ToolFailed("postgres", f'its version is not understood: "{output.strip()}"', output=output)
    return int(match[1])


def of_data(data_dir: Path) -> int | None:
    """The major version that a data directory belongs to; None if it holds no database."""
    try:
        return int((data_dir / "PG_VERSION").read_text().strip())
    except (OSError, ValueError):
        return None

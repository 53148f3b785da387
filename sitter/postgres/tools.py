"""PostgreSQL's own programs, run to their end as the configured user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Any

from manatee.config import Settings
from manatee.storage import child
from sitter.postgres.account import Account
from sitter.postgres.errors import ToolFailed

WORKING_DIRECTORY = "/"
"""Of every child: the one directory that any user can enter."""

COMPLAINT = 1 << 16
"""Bytes kept of the beginning and of the end of a program's standard error."""

LAST_LINE = 500
"""Characters kept of a program's last line."""


def environment() -> dict[str, str]:
    """What children inherit: nothing that changes what they do (PGDATA, PGOPTIONS, ...) or the language they speak."""
    kept = {name: os.environ[name] for name in ("PATH", "TZ", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def credentials(settings: Settings) -> Mapping[str, Any]:
    """The arguments of `asyncio.create_subprocess_exec` that make a child the configured user's."""
    account = Account.of(settings)
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


async def run_tool(
    settings: Settings, tool: str, *arguments: str, timeout: float | None = None, keep: int | None = None
) -> str:
    """Run `tool` from `postgres.bin_dir` to its end and return what it wrote to standard output.

    Raises ToolFailed if it cannot be run, exits with another status than 0 (the reason is its last line), or takes
    longer than `timeout` seconds (`postgres.query_timeout`). It is never left running, on cancellation neither; but one
    whose disk hangs is not waited for until it is gone. Of a long output no more than the first and the last `keep`
    bytes are returned.
    """
    limit = timeout if timeout is not None else settings.postgres.query_timeout
    program = settings.postgres.bin_dir / tool
    try:
        async with asyncio.timeout(limit):
            status, output, complaint = await _run(settings, keep, str(program), *arguments)
    except TimeoutError:
        raise ToolFailed(tool, f"not finished after {limit:g} s") from None
    except OSError as error:
        raise ToolFailed(tool, f"{program} cannot be run: {error.strerror}") from error
    if status != 0:
        raise ToolFailed(tool, _last_line(complaint) or f"ended with status {status}", status=status, output=output)
    return output


async def _run(settings: Settings, keep: int | None, *command: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=WORKING_DIRECTORY,
        env=environment(),
        start_new_session=True,
        **credentials(settings),
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        output, complaint = await asyncio.gather(_ends(process.stdout, keep), _ends(process.stderr, COMPLAINT))
        await process.wait()
    finally:
        if process.returncode is None:
            _kill_group(process.pid)
            await child.end(process, command)
    return process.returncode, output.decode(errors="replace"), complaint.decode(errors="replace")


async def _ends(stream: asyncio.StreamReader, keep: int | None) -> bytes:
    """All that comes over the stream; if that is more than it should keep, its first and its last bytes."""
    first, rest = b"", bytearray()
    while chunk := await stream.read(1 << 16):
        rest += chunk
        if keep is not None and len(rest) > 4 * keep:
            first = first or bytes(rest[:keep])
            del rest[:-keep]
    return first + bytes(rest)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LAST_LINE] if lines else ""

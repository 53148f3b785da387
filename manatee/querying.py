"""Queries whose deadline is kept, whatever the server does, and libpq's errors in one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    Connection = AsyncConnection[tuple[Any, ...]]

Result = TypeVar("Result")

_PREAMBLE = re.compile(r"(connection (failed|is bad): )?(connection to server (at|on) .*? failed: )?")


async def within(connection: Connection, seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work` on a connection; raises TimeoutError after `seconds`, and the connection is cut then.

    Cancelling psycopg instead would ask the server to cancel and wait for its answer, up to ten seconds more: a server
    that hangs gives none.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _cut(connection, task)
        raise
    if task.done():
        return task.result()
    await _cut(connection, task)
    raise TimeoutError


async def _cut(connection: Connection, task: asyncio.Task[Any]) -> None:
    """Shut the socket down under `task`, which ends it with an error."""
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    await asyncio.gather(task, return_exceptions=True)


def first_line(error: BaseException) -> str:
    """An error of libpq in one line, without the address, which whoever asked knows, and without what it says twice."""
    line = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return _PREAMBLE.sub("", line)

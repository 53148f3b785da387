"""A program that a driver runs: as PostgreSQL's user, with its own small environment, and never outliving its owner."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

_KEPT = ("PATH", "TZ", "LD_LIBRARY_PATH", "PGPASSFILE")
_TAIL = 4096
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Account:
    """A user of this machine, to run programs as and to give files to."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def account(name: str | None) -> Account | None:
    """The account to change to, or None where no change is needed (or possible: only root can).

    Raises LookupError for a user that does not exist.
    """
    if name is None or os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(name)
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(name, entry.pw_gid)), entry.pw_dir)


class Child:
    """A running program and the last lines it has said on its standard error."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @property
    def said(self) -> str:
        """Its last words, on one line."""
        lines = self._said.decode(errors="replace").splitlines()
        return "; ".join(line.strip() for line in lines[-3:] if line.strip())

    async def ended(self) -> int:
        """Its exit status, when it has one. The caller sets the deadline."""
        status = await self._process.wait()
        await asyncio.wait([self._listener], timeout=1.0)
        return status

    async def end(self) -> None:
        """It is gone when this returns: killed, since it has nothing to tidy up."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._listener.cancel()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while said := await self._process.stderr.read(_TAIL):
            self._said += said
            del self._said[:-_TAIL]


@asynccontextmanager
async def running(
    argv: Sequence[str], *, user: Account | None = None, stdin: int = DEVNULL, stdout: int = DEVNULL
) -> AsyncIterator[Child]:
    """Run a program; it is surely gone when the block is left. Raises OSError when it cannot be started."""
    options: dict[str, Any] = {}
    if user is not None:
        options.update(user=user.uid, group=user.gid, extra_groups=user.groups)
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=stdout,
        stderr=PIPE,
        cwd="/",
        env=_environment(user),
        start_new_session=True,
        preexec_fn=_die_with_parent,
        **options,
    )
    child = Child(process)
    try:
        yield child
    finally:
        await child.end()


async def output(argv: Sequence[str], *, timeout: float) -> tuple[int, str, str]:
    """Run a short program as this process's user: its exit status, and what it said on its standard output and error.

    It is gone when this returns. Raises OSError when it cannot be started, TimeoutError after `timeout` seconds.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd="/",
        env=_environment(None),
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    try:
        async with asyncio.timeout(timeout):
            said, complained = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace"), complained.decode(errors="replace")


def _environment(user: Account | None) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    home = user.home if user is not None else os.environ.get("HOME")
    if home:
        environment["HOME"] = home
    return {**environment, "LC_ALL": "C"}


def _parent_death_signal() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    # Runs after the change of user, which would clear the setting (prctl(2)).
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) and None


_die_with_parent = _parent_death_signal()

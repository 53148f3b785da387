"""A program that a driver runs: as PostgreSQL's user, with its own small environment, and killed with its owner."""

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

import structlog

_KEPT = ("PATH", "TZ", "LD_LIBRARY_PATH", "PGPASSFILE")
_TAIL = 4096
GONE_WITHIN = 5.0
"""Seconds after SIGKILL for which it is waited that a program is gone."""
_lingering: set[asyncio.Task[int]] = set()
"""Those that wait for programs which were killed and are not gone yet."""
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

    def close(self) -> None:
        """Listen no more."""
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
    """Run a program; killed when the block is left, and gone then unless it lingers (`end`).

    Raises OSError when it cannot be started.
    """
    async with _started(argv, user=user, stdin=stdin, stdout=stdout) as process:
        child = Child(process)
        try:
            yield child
        finally:
            child.close()


async def output(argv: Sequence[str], *, timeout: float) -> tuple[int, str, str]:
    """Run a short program as this process's user: its exit status, and what it said on its standard output and error.

    Killed when this ends before it, as in `running`; but should this process die, it comes to its end by itself: to be
    killed then it would have to be forked, and forking a process as large as ours takes several times as long, in
    which the event loop stands still. Raises OSError when it cannot be started, TimeoutError after `timeout` seconds.
    """
    async with _started(argv, stdout=PIPE, dies_with_us=False) as process:
        async with asyncio.timeout(timeout):
            said, complained = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode(errors="replace"), complained.decode(errors="replace")


@asynccontextmanager
async def _started(
    argv: Sequence[str],
    *,
    user: Account | None = None,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    dies_with_us: bool = True,
) -> AsyncIterator[Process]:
    options: dict[str, Any] = {"preexec_fn": _die_with_parent} if dies_with_us else {}
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
        **options,
    )
    try:
        yield process
    finally:
        await end(process, argv)


async def end(process: Process, argv: Sequence[str]) -> None:
    """Kill it, since it has nothing to tidy up, and wait until it is gone, but not for ever.

    A program in a system call that the kernel does not break off (a disk or a pool that hangs) dies when that returns.
    It is left to a task of its own then: no deadline of whoever ran it may depend on it.
    """
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    reaping = asyncio.create_task(process.wait())
    _lingering.add(reaping)
    reaping.add_done_callback(_lingering.discard)
    done, _ = await asyncio.wait([reaping], timeout=GONE_WITHIN)
    if not done:
        log = structlog.get_logger().bind(command=" ".join(argv), pid=process.pid)
        log.error("a program that was killed does not go: its disk or pool may hang", seconds=GONE_WITHIN)
        reaping.add_done_callback(lambda ended: ended.cancelled() or log.warning("it has gone at last"))


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

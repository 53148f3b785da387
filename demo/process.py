"""Child processes that leave nothing behind: each dies with its parent, and is ended together with all its descendants.

A child gets a session of its own, so that Ctrl-C in a terminal reaches only us, and where the platform has it
(Linux) a parent-death signal, so that it does not outlive us however we end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

POLL = 0.01
"""Seconds between two looks at a process that is not our own child."""

PID_SUFFIX = ".child"
"""Beside the log of a child stands a file of the same name with this suffix: its pid and when it started."""


class Child:
    """One started program; `Child.start` makes it."""

    def __init__(self, process: Process, note: Path) -> None:
        self._process = process
        self._note = note
        self._released = False

    @classmethod
    async def start(cls, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Start a program with its output appended to `log`; `env` comes on top of our own environment.

        Must be called from a thread that lives as long as the child may: the parent-death signal follows the thread
        that forked (prctl(2), PR_SET_PDEATHSIG). Raises OSError if the program cannot be started.
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *_dying_with_us(argv[0]),
                *argv,
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        note = log.with_name(log.name + PID_SUFFIX)
        with contextlib.suppress(psutil.NoSuchProcess):
            note.write_text(f"{process.pid} {psutil.Process(process.pid).create_time()!r}")
        return cls(process, note)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def terminate(self, *, grace: float) -> None:
        """SIGTERM, and what is left of the process and its descendants after `grace` seconds is killed.

        Returns when all of them are gone.
        """
        family = self.family()
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._process.wait()
        await _end([*family, *_freeze([self])])
        await self.release()

    async def kill(self) -> None:
        """SIGKILL the process and all its descendants at one moment; returns when they are gone."""
        await kill_at_once(self)

    async def release(self) -> None:
        """Wait until it is reaped; from then on its pid belongs to whoever gets it next."""
        await self._process.wait()
        if not self._released:
            self._released = True
            self._note.unlink(missing_ok=True)

    def family(self) -> list[psutil.Process]:
        """The process, its descendants, and the orphans of its session; nobody once it was released."""
        if self._released:
            return []
        members: list[psutil.Process] = []
        if self.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(self.pid)
                members += [root, *root.children(recursive=True)]
        for other in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if other != self.pid and os.getsid(other) == self.pid:
                    members.append(psutil.Process(other))
        return members


async def kill_at_once(*children: Child) -> None:
    """SIGKILL several programs with all their descendants at one moment; returns when all of them are gone."""
    await _end(_freeze(children))
    for child in children:
        await child.release()


def _dying_with_us(program: str | Path) -> tuple[str, ...]:
    """The command in front that sets the parent-death signal.

    A command, since no Python code may run between fork and exec in a process with threads. Raises FileNotFoundError
    for a program that does not exist, which the command would only say in the log.
    """
    if shutil.which(program) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(program))
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return (setpriv, "--pdeathsig", "KILL") if setpriv else ()


def _freeze(children: Iterable[Child]) -> list[psutil.Process]:
    """Stop the families from the top down, so that nobody in them can fork while we look; returns their members.

    To kill a parent first and then those who were its children a moment ago would miss the child it forked last.
    """
    children = list(children)
    frozen: dict[int, psutil.Process] = {}
    while fresh := [member for child in children for member in child.family() if member.pid not in frozen]:
        for member in fresh:
            frozen[member.pid] = member
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        _wait_stopped(fresh)
    return list(frozen.values())


def _wait_stopped(members: Iterable[psutil.Process], timeout: float = 1.0) -> None:
    """A signal is delivered in its own time; what sleeps uninterruptibly in the kernel cannot fork either."""
    settled = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_DISK_SLEEP}
    deadline = time.monotonic() + timeout
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            while member.status() not in settled and time.monotonic() < deadline:
                time.sleep(0.001)


async def _end(members: Iterable[psutil.Process]) -> None:
    """SIGKILL all, then wait until all are gone. psutil tells a reused pid by its start time."""
    members = list(members)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    while any(map(alive, members)):
        await asyncio.sleep(POLL)


def alive(member: psutil.Process) -> bool:
    """Whether the process still runs; a zombie that nobody has reaped yet does not."""
    try:
        return member.is_running() and bool(member.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def busy(address: str, port: int) -> bool:
    """Whether something else holds the port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        # As servers do: connections of a server that is gone do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False

"""The postmaster, as the sitter's child: started, watched, stopped, and never outliving the sitter.

Where the platform has a parent-death signal (Linux, through setpriv(1)), the postmaster gets SIGQUIT when the thread
that forked it ends: an immediate shutdown, in which the postmaster ends every backend before itself. SIGKILL would end
the postmaster alone, and its backends and walsenders would go on for as long as they are busy. The signal is set after
the change of user, which clears it. Elsewhere, and if the sitter dies in the moment between, `start` ends what a dead
sitter left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from manatee.config import Settings
from manatee.log import Logger
from sitter.postgres import leftovers
from sitter.postgres.errors import StartFailed
from sitter.postgres.tools import WORKING_DIRECTORY, credentials, environment

LINE_LIMIT = 2000
"""Characters of one line of the server's log that are passed on."""

REPEAT = 5.0
"""Seconds in which a line of the server's log is not passed on again, if only its numbers differ."""

_NUMBERS = re.compile(r"[0-9A-F]+/[0-9A-F]+|\d+")

LAST_LINES = 20
"""Lines of the server's log that are kept for the reason of a failed start."""

IMMEDIATE_GRACE = 6.0
"""Seconds an immediate shutdown may take: the postmaster itself kills slow backends after 5."""

_COURTESY = re.compile(r"(LOG|HINT): .*(starting|listening|shut down|skipping missing)|FATAL:  the database system is ")
_GRAVE = re.compile(r"(FATAL|PANIC|ERROR): ")

SHARED_MEMORY = "pre-existing shared memory block"
"""What a postmaster says while backends of its predecessor are still attached."""


class _Log(asyncio.Protocol):
    """The server's standard error, line by line.

    What it says again and again (a standby whose upstream is gone, ten times a second) is passed on now and then.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._rest = b""
        self._said: dict[str, float] = {}
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > LINE_LIMIT * 4:
            self._line(self._rest)
            self._rest = b""

    def connection_lost(self, _: Exception | None) -> None:
        self._line(self._rest)
        self._rest = b""
        self.closed.set()

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:LINE_LIMIT]
        if not text:
            return
        self.last.append(text)
        now, kind = time.monotonic(), _NUMBERS.sub("", text)
        if now - self._said.get(kind, -math.inf) >= REPEAT:
            self._said = {each: at for each, at in self._said.items() if now - at < REPEAT} | {kind: now}
            self._log.info("postgres", line=text)


class Postmaster:
    """The one PostgreSQL server of `settings.storage.data_dir`. Not to be used from two tasks at once.

    `exited` is set whenever no postmaster of ours runs; `returncode` is then how the last one ended (negative: by that
    signal; None: never started).
    """

    def __init__(self, settings: Settings, log: Logger) -> None:
        self._settings = settings
        self._log = log
        self._data_dir = settings.storage.data_dir
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._output: asyncio.ReadTransport | None = None
        self._lines = _Log(log)
        self._wrapper: tuple[str, ...] | None = None
        self.exited = asyncio.Event()
        self.exited.set()
        self.returncode: int | None = None

    @property
    def running(self) -> bool:
        return not self.exited.is_set()

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest lines of the server's log, for people."""
        return tuple(self._lines.last)

    @property
    def status(self) -> str | None:
        """What the running postmaster says of itself in its lock file: `starting`, `standby`, `ready`, `stopping`.

        `standby`: a hot standby that does not let anybody in yet; one that does is `ready`.
        """
        lock = leftovers.lock_file(self._data_dir)
        return lock.status if lock is not None and lock.pid == self.pid else None

    async def start(self, config_file: Path, *, timeout: float, first: Callable[[], None] = lambda: None) -> None:
        """Start the server on the data directory; returns when it listens, which may be long before it lets anyone in.

        Whatever an earlier sitter left running on this data directory is ended before anything is done, and `first` is
        what is done to data on which nothing runs: it may be called again, and raise. Raises StartFailed, with the
        server's last words, if it ends before it listens or takes longer than `timeout` seconds; StopFailed if an old
        server cannot be ended. After an error or a cancellation nothing runs.
        """
        if self.running:
            raise StartFailed("a server of ours is running already")
        await self._release()
        deadline = time.monotonic() + timeout
        lock = leftovers.lock_file(self._data_dir)
        if lock is not None and lock.pid < 0 and -lock.pid in await leftovers.servers(self._data_dir):
            raise StartFailed(f"{self._data_dir} is in use by a single-user server (pid {-lock.pid}): end it first")
        while True:
            await leftovers.end(self._data_dir, self._log, grace=IMMEDIATE_GRACE, timeout=timeout)
            leftovers.forget_stale_lock(self._data_dir, self._log)
            first()
            await self._spawn(config_file)
            try:
                if await self._listening(deadline):
                    return
            except BaseException:
                await self.stop("immediate", timeout=IMMEDIATE_GRACE)
                raise
            await self._release()
            in_use = any(SHARED_MEMORY in line for line in self.last_lines)
            if not in_use or time.monotonic() > deadline:
                raise StartFailed(f"ended with status {self.returncode}: {self._last_words()}")
            await asyncio.sleep(0.1)

    async def stop(self, mode: Literal["fast", "immediate"], *, timeout: float) -> None:
        """Stop the server and see that no process of it is left.

        `fast` disconnects everyone, writes a checkpoint and waits for the walsenders; after `timeout` seconds it
        becomes `immediate`, which has `IMMEDIATE_GRACE` seconds before what is left is killed. Does nothing if nothing
        runs. Raises StopFailed if something cannot be killed.
        """
        if self.running and mode == "fast":
            self._signal(signal.SIGINT)
            await self.exit(timeout)
        if self.running:
            self._signal(signal.SIGQUIT)
            self._signal(signal.SIGCONT)  # one that was stopped would do nothing about it
            await self.exit(IMMEDIATE_GRACE if mode == "fast" else min(timeout, IMMEDIATE_GRACE))
        if self.running:
            self._log.error("PostgreSQL does not stop, killing it", pid=self.pid)
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            await self.exit(IMMEDIATE_GRACE)
        if not await leftovers.gone(self._data_dir, timeout=1.0):
            await leftovers.end(self._data_dir, self._log, grace=0.5, timeout=IMMEDIATE_GRACE)
        if not self.running:
            await self._release()

    def reload(self) -> None:
        """Have the server read its configuration again (SIGHUP); it does so in its own time. No-op if none runs."""
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            leftovers.send({self.pid}, number)

    async def _spawn(self, config_file: Path) -> None:
        postgres = str(self._settings.postgres.bin_dir / leftovers.SERVER)
        reading, writing = os.pipe()
        self._lines = _Log(self._log)
        self.returncode = None
        try:
            self._output, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: self._lines, os.fdopen(reading, "rb", buffering=0)
            )
            self._process = await asyncio.create_subprocess_exec(
                *(
                    *await self._dying_with_us(),
                    postgres,
                    "-D",
                    str(self._data_dir),
                    "-c",
                    f"config_file={config_file}",
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=WORKING_DIRECTORY,
                env=environment(),
                start_new_session=True,
                **credentials(self._settings),
            )
        except OSError as error:
            await self._release()
            raise StartFailed(f"{postgres} cannot be run: {error.strerror}") from error
        finally:
            os.close(writing)
        self.exited.clear()
        self._watch = asyncio.create_task(self._until_exit(self._process))
        self._log.info("PostgreSQL started", pid=self._process.pid, data_dir=str(self._data_dir))

    async def _dying_with_us(self) -> tuple[str, ...]:
        """The words before the command that give it a parent-death signal, if that works here; tried once."""
        if self._wrapper is None:
            self._wrapper = await self._tried_wrapper()
        return self._wrapper

    async def _tried_wrapper(self) -> tuple[str, ...]:
        wrapper = (shutil.which("setpriv") or "setpriv", "--pdeathsig", "QUIT")
        try:
            trial = await asyncio.create_subprocess_exec(*wrapper, "true", stderr=asyncio.subprocess.DEVNULL)
            works = await trial.wait() == 0
        except OSError:
            works = False
        if works:
            return wrapper
        self._log.warning(
            "no setpriv --pdeathsig here: if the sitter is killed, PostgreSQL runs on until the next start"
        )
        return ()

    async def _until_exit(self, process: asyncio.subprocess.Process) -> None:
        self.returncode = await process.wait()
        self.exited.set()
        self._log.info("PostgreSQL ended", pid=process.pid, returncode=self.returncode)

    async def _listening(self, deadline: float) -> bool:
        """Wait until the lock file says that the postmaster has its sockets; False if it ended before."""
        while self.running:
            if self.status is not None:
                return True
            if time.monotonic() > deadline:
                raise StartFailed(f"not listening within the deadline: {self._last_words()}")
            await self.exit(leftovers.LOOK)
        return False

    async def exit(self, timeout: float) -> None:
        """Wait for the postmaster's end, but no longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.exited.wait()
        except TimeoutError:
            pass

    async def _release(self) -> None:
        """Let go of what belonged to a server that has ended, after its last words were read."""
        if self._output is not None:
            try:
                async with asyncio.timeout(1.0):
                    await self._lines.closed.wait()
            except TimeoutError:
                self._log.warning("something still holds the log of a PostgreSQL that has ended")
            self._output.close()
            self._output = None
        if self._watch is not None:
            await self._watch
            self._watch = None
        self._process = None

    async def obituary(self) -> str:
        """What a server that has ended complained of last; what it has written is read first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self._lines.closed.wait()
        return self._last_words()

    def _last_words(self) -> str:
        """What it died of, if it said so, and its last complaints; not what it told those whom it turned away."""
        lines = [line for line in self.last_lines if not _COURTESY.search(line)]
        grave = [line for line in lines if _GRAVE.search(line)]
        last = lines[-4:]
        return " | ".join([*(line for line in grave[-3:] if line not in last), *last]) or "it said nothing"

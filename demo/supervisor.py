"""A small service manager: it starts, stops and restarts programs, and ends with all of them.

It plays the part that SMF or systemd has in production, with their promise: `stop` returns when the program and all
its descendants are gone, and a program that dies is started again after a small delay that grows while it keeps
dying. `manatee-adm rebuild` reaches it over a Unix socket.

The socket takes one JSON line per request, `{"command": "start"|"stop"|"status"|"kill", "service": name}`, and answers
each with one line: `{"ok": true, "state": "running"|"waiting"|"stopped", "pid": n|null}` (`waiting`: it died and will
be started again), or `{"ok": false, "error": "..."}`. `kill` is a stop with SIGKILL; neither is followed by a restart.

    python -m demo.supervisor SOCKET PROGRAMS.toml

runs the programs of a file until SIGTERM or SIGINT, and `python -m demo.supervisor SOCKET kill NAME` asks for one of
the commands. In the file each program is a table:

    [program.sitter]
    argv = ["manatee-sitter", "-c", "manatee.toml"]
    log = "sitter.log"
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from demo.process import Child, kill_at_once

FIRST_DELAY = 0.1
LAST_DELAY = 5.0
"""Seconds until a program that died is started again: doubling from the first to the last while it keeps dying."""
STEADY = 10.0
"""A program that ran this many seconds is no longer one that keeps dying."""


class UnknownProgram(KeyError):
    def __str__(self) -> str:
        return f"no program of that name: {self.args[0]}"


@dataclass(frozen=True)
class Program:
    """What to run, and how long it may take to stop."""

    name: str
    argv: tuple[str | Path, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 30.0
    """Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Status:
    state: str
    """`running`, `waiting` or `stopped`."""
    pid: int | None
    deaths: int
    """How often it ended without being told to."""


class Supervisor:
    """Runs programs in this process's event loop; all of them are gone when the `async with` block is left.

    >>> async with Supervisor([Program("sitter", ("manatee-sitter", "-c", settings), log)], socket=path) as supervisor:
    ...     await supervisor.start("sitter")
    """

    def __init__(self, programs: Iterable[Program] = (), *, socket: Path | None = None) -> None:
        self._keepers = {program.name: _Keeper(program) for program in programs}
        self._socket = socket
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self._socket)
            self._socket.chmod(0o600)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None and self._socket is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)
        await self.kill(*self._keepers)

    def add(self, program: Program) -> None:
        self._keepers[program.name] = _Keeper(program)

    async def start(self, name: str) -> None:
        """Start a program unless it runs; raises UnknownProgram, OSError if it cannot be executed."""
        await self._keeper(name).start()

    async def stop(self, name: str) -> None:
        """SIGTERM, SIGKILL after its grace; returns when it and its descendants are gone. It stays down."""
        await self._keeper(name).stop()

    async def kill(self, *names: str) -> None:
        """SIGKILL these programs and their descendants at one moment; returns when they are gone. They stay down."""
        keepers = [self._keeper(name) for name in names]
        async with contextlib.AsyncExitStack() as stack:
            for keeper in keepers:
                await stack.enter_async_context(keeper.at_rest())
            await kill_at_once(*(keeper.child for keeper in keepers if keeper.child is not None))

    def status(self, name: str) -> Status:
        return self._keeper(name).status()

    def _keeper(self, name: str) -> _Keeper:
        try:
            return self._keepers[name]
        except KeyError:
            raise UnknownProgram(name) from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        name = None
        try:
            request = json.loads(line)
            command, name = request["command"], request["service"]
            match command:
                case "start":
                    await self.start(name)
                case "stop":
                    await self.stop(name)
                case "kill":
                    await self.kill(name)
                case "status":
                    pass
                case _:
                    return {"ok": False, "error": f"no such command: {command}"}
            status = self.status(name)
        except (ValueError, TypeError, LookupError) as error:
            message = str(error) if isinstance(error, UnknownProgram) else f"not a request: {error!r}"
            return {"ok": False, "error": message}
        except OSError as error:
            return {"ok": False, "error": f"{name} cannot be started: {error}"}
        return {"ok": True, "state": status.state, "pid": status.pid}


class _Keeper:
    """One program: at most one child of it at a time, and a task that starts it again when it dies."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.child: Child | None = None
        self._deaths = 0
        self._task: asyncio.Task[None] | None = None
        self._commands = asyncio.Lock()

    def status(self) -> Status:
        running = self.child is not None and self.child.returncode is None
        wanted = self._task is not None
        state = ("running" if running else "waiting") if wanted else "stopped"
        return Status(state, self.child.pid if self.child is not None and running else None, self._deaths)

    async def start(self) -> None:
        async with self._commands:
            if self._task is None:
                self.child = await self._spawn()
                self._task = asyncio.create_task(self._keep(self.child))

    async def stop(self) -> None:
        async with self.at_rest():
            if self.child is not None:
                await self.child.terminate(grace=self.program.grace)

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """While this lasts nobody starts the program; afterwards it is down until told to start."""
        async with self._commands:
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            yield
            self.child = None

    async def _spawn(self) -> Child:
        return await Child.start(self.program.argv, log=self.program.log, env=self.program.env)

    async def _keep(self, child: Child) -> None:
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            await child.wait()
            self._deaths += 1
            await child.kill()
            if time.monotonic() - began > STEADY:
                delay = FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)
            # A program that could be executed a moment ago and cannot now is tried again like one that dies.
            with contextlib.suppress(OSError):
                self.child = child = await self._spawn()


def read_programs(path: Path) -> list[Program]:
    """The programs of a TOML file; raises OSError, ValueError or KeyError."""
    tables = tomllib.loads(path.read_text())["program"]
    return [
        Program(name, tuple(table["argv"]), Path(table["log"]), table.get("env", {}), table.get("grace", 30.0))
        for name, table in tables.items()
    ]


async def run(programs: Iterable[Program], socket: Path) -> None:
    """Run all programs until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    programs = list(programs)
    async with Supervisor(programs, socket=socket) as supervisor:
        for program in programs:
            await supervisor.start(program.name)
        await ended.wait()
        for program in reversed(programs):
            await supervisor.stop(program.name)


async def tell(socket: Path, command: str, name: str) -> dict[str, Any]:
    """Ask a supervisor that runs elsewhere; raises OSError if there is none."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(json.dumps({"command": command, "service": name}).encode() + b"\n")
        async with asyncio.timeout(60):
            answer: dict[str, Any] = json.loads(await reader.readline())
    finally:
        writer.close()
    return answer


if __name__ == "__main__":
    match sys.argv[1:]:
        case [path, programs]:
            asyncio.run(run(read_programs(Path(programs)), Path(path)))
        case [path, command, name]:
            print(json.dumps(asyncio.run(tell(Path(path), command, name))))
        case _:
            sys.exit("usage: python -m demo.supervisor SOCKET PROGRAMS.toml | SOCKET start|stop|kill|status NAME")

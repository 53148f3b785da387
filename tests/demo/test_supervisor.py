"""The supervisor keeps a service manager's promises: what it stops is gone with all its descendants, what dies comes
back, and nothing outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.process import alive
from demo.supervisor import FIRST_DELAY, Program, Supervisor, UnknownProgram

# A descendant that left its parent's session and ignores SIGTERM, and a parent that ignores it too.
STUBBORN = "trap '' TERM; setsid sh -c \"trap '' TERM; while :; do sleep 1000; done\" & while :; do sleep 1000; done"
# Ever new descendants, faster than a look at the process table.
FORKING = "while :; do setsid sleep 1000 & sleep 0.001; done"


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def program(directory: Path, script: str, name: str = "program", grace: float = 0.3) -> Program:
    return Program(name, ("sh", "-c", script), directory / f"{name}.log", grace=grace)


async def pid_of(supervisor: Supervisor, name: str = "program") -> int:
    await until(lambda: supervisor.status(name).pid)
    pid = supervisor.status(name).pid
    assert pid is not None
    return pid


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    async with Supervisor(socket=tmp_path / "socket") as running:
        yield running


async def ask(socket: Path, **request: str) -> Any:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(json.dumps(request).encode() + b"\n")
    async with asyncio.timeout(10):
        answer = json.loads(await reader.readline())
    writer.close()
    return answer


async def test_stop_ends_descendants_that_ignore_it(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(program(tmp_path, STUBBORN))
    await supervisor.start("program")
    pid = await pid_of(supervisor)
    await until(lambda: len(descendants(pid)) >= 3)
    family = [psutil.Process(pid), *descendants(pid)]
    await supervisor.stop("program")
    assert not any(map(alive, family))
    assert supervisor.status("program").state == "stopped"


async def test_stop_lets_a_program_end_by_itself(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(program(tmp_path, "trap 'echo ended cleanly; exit 0' TERM; while :; do sleep 0.01; done", grace=10))
    await supervisor.start("program")
    await pid_of(supervisor)
    await asyncio.sleep(0)
    await until(lambda: descendants(supervisor.status("program").pid or 0))
    await supervisor.stop("program")
    assert "ended cleanly" in (tmp_path / "program.log").read_text()


async def test_kill_misses_nobody_while_the_program_forks(supervisor: Supervisor, tmp_path: Path) -> None:
    marker = str(tmp_path)
    supervisor.add(program(tmp_path, f"MARK={marker}; export MARK; {FORKING}"))
    await supervisor.start("program")
    pid = await pid_of(supervisor)
    await until(lambda: len(descendants(pid)) > 20)
    await supervisor.kill("program")
    left = [
        other
        for other in psutil.process_iter()
        if other.name() == "sleep" and alive(other) and other.environ().get("MARK") == marker
    ]
    assert left == []


async def test_a_program_that_dies_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(program(tmp_path, "while :; do sleep 1000; done"))
    await supervisor.start("program")
    first = await pid_of(supervisor)
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.status("program").pid not in (None, first))
    assert supervisor.status("program").deaths == 1


async def test_what_a_dead_program_leaves_behind_is_gone_before_it_is_started_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.add(program(tmp_path, "sleep 1000 & while :; do sleep 1000; done"))
    await supervisor.start("program")
    first = await pid_of(supervisor)
    await until(lambda: len(descendants(first)) == 2)
    orphans = descendants(first)
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.status("program").pid not in (None, first))
    assert not any(map(alive, orphans))


async def test_the_delay_grows_while_a_program_keeps_dying(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(program(tmp_path, "exit 1"))
    began = time.monotonic()
    await supervisor.start("program")
    await until(lambda: supervisor.status("program").deaths == 4)
    assert time.monotonic() - began >= (1 + 2 + 4) * FIRST_DELAY
    assert supervisor.status("program").state == "waiting"


async def test_a_killed_program_stays_down(supervisor: Supervisor, tmp_path: Path) -> None:
    for name in ("one", "two"):
        supervisor.add(program(tmp_path, "while :; do sleep 1000; done", name))
        await supervisor.start(name)
    pids = [await pid_of(supervisor, name) for name in ("one", "two")]
    await supervisor.kill("one", "two")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    await asyncio.sleep(3 * FIRST_DELAY)
    assert [supervisor.status(name).state for name in ("one", "two")] == ["stopped", "stopped"]


async def test_the_socket_answers_in_one_line_each(supervisor: Supervisor, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    supervisor.add(program(tmp_path, "while :; do sleep 1000; done", "sitter"))
    supervisor.add(Program("absent", (tmp_path / "absent",), tmp_path / "log"))
    assert await ask(socket, command="status", service="sitter") == {"ok": True, "state": "stopped", "pid": None}
    started = await ask(socket, command="start", service="sitter")
    assert started == {"ok": True, "state": "running", "pid": supervisor.status("sitter").pid}
    assert await ask(socket, command="stop", service="sitter") == {"ok": True, "state": "stopped", "pid": None}
    assert not psutil.pid_exists(started["pid"])
    for request, complaint in (
        ({"command": "start", "service": "nobody"}, "no program of that name: nobody"),
        ({"command": "dance", "service": "sitter"}, "no such command: dance"),
        ({"command": "start"}, "not a request"),
        ({"command": "start", "service": "absent"}, "absent cannot be started"),
    ):
        answer = await ask(socket, **request)
        assert not answer["ok"]
        assert complaint in answer["error"]


async def test_an_unknown_program_is_said(supervisor: Supervisor) -> None:
    with pytest.raises(UnknownProgram, match="no program of that name: nobody"):
        await supervisor.start("nobody")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_the_supervisor(tmp_path: Path, ending: signal.Signals) -> None:
    programs = tmp_path / "programs.toml"
    programs.write_text(
        f'[program.sitter]\nargv = ["sleep", "1000"]\nlog = "{tmp_path / "log"}"\n'
        f'[program.backup]\nargv = ["sleep", "1000"]\nlog = "{tmp_path / "log"}"\n'
    )
    socket = tmp_path / "socket"
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-m", "demo.supervisor", socket, programs)
    children: list[psutil.Process] = []
    try:
        await until(lambda: len(descendants(supervisor.pid)) == 2)
        children = descendants(supervisor.pid)
        await until(lambda: all(child.name() == "sleep" for child in children))
    finally:
        supervisor.send_signal(ending)
        async with asyncio.timeout(10):
            await supervisor.wait()
    await until(lambda: not any(map(alive, children)))
    assert not (ending is signal.SIGTERM and socket.exists())

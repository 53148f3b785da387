"""Programs that a driver runs end with their owner, and never hold it up."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manatee.storage import child
from sitter.postgres import rewind, tools
from sitter.postgres.errors import ToolFailed


async def test_a_program_that_cannot_be_killed_does_not_hold_up_whoever_runs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one in an uninterruptible system call, whose death comes later."""
    monkeypatch.setattr(Process, "kill", lambda _: None)
    monkeypatch.setattr(child, "GONE_WITHIN", 0.1)
    program = ["sh", "-c", f"echo $$ >> {tmp_path}/pids; exec sleep 300"]
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await child.output(program, timeout=1.0)
        async with child.running(program) as running:
            waiting = asyncio.create_task(running.ended())
        assert len(child._lingering) == 2
        while len(pids := (tmp_path / "pids").read_text().split()) < 2:
            await asyncio.sleep(0.01)
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        assert await waiting == -signal.SIGKILL
        while child._lingering:  # nobody else waits for them, and no corpse stays
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("run", [tools.run_tool, rewind._run], ids=["a tool", "pg_rewind"])
async def test_nor_does_one_of_postgresqls_hold_up_a_transition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., Awaitable[str]]
) -> None:
    """pg_controldata and pg_waldump read from the disk that hangs; nothing newer would be carried out meanwhile."""
    monkeypatch.setattr(Process, "kill", lambda _: None)
    monkeypatch.setattr(Process, "send_signal", lambda *_: None)
    monkeypatch.setattr("sitter.postgres.tools._kill_group", lambda _: None)
    monkeypatch.setattr(child, "GONE_WITHIN", 0.1)
    settings: Any = SimpleNamespace(postgres=SimpleNamespace(bin_dir=Path("/bin"), user=None))
    monkeypatch.setattr("sitter.postgres.tools.credentials", lambda _: {})
    monkeypatch.setattr("sitter.postgres.rewind.credentials", lambda _: {})
    program = ("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 300")
    deadline = {"timeout" if run is tools.run_tool else "limit": 1.0}
    async with asyncio.timeout(20):
        with pytest.raises(ToolFailed):
            await run(settings, *program, **deadline)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        while child._lingering:
            await asyncio.sleep(0.01)

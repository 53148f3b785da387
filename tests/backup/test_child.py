"""Programs that a driver runs end with their owner, and never hold it up."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from manatee.storage import child


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

"""Runs of the demo beside whatever else runs on the machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Other ports than the ones somebody's own cluster would have.
PORTS = {"postgres": 25432, "backup": 22345, "zookeeper": 22181}
OPTIONS = [word for name, port in PORTS.items() for word in (f"--{name}-port", str(port))]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a run keeps its things: by itself, so that what is left is seen."""
    short = Path("/tmp") / f"md{os.getpid()}"
    short.mkdir()
    short.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(tempfile, "tempdir", None)  # looked up once in a process
    yield short
    subprocess.run(["rm", "-r", short], check=True)


async def ended(process: asyncio.subprocess.Process, timeout: float) -> tuple[int, str]:
    async with asyncio.timeout(timeout):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def tells(said: str, story: Sequence[str]) -> None:
    """All of these words are there, in this order."""
    at = 0
    for line in story:
        at = said.find(line, at)
        assert at >= 0, f"{line!r} is missing, or out of order, in:\n{said}"

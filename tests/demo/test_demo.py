"""`make demo` and `make cluster` as a newcomer runs them: what is promised holds, and nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from demo.options import PEERS
from demo.process import busy
from tests.demo.conftest import OPTIONS, PORTS, ROOT, ended, tells


async def start(module: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *OPTIONS,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def read_until(process: asyncio.subprocess.Process, text: str, timeout: float) -> str:
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(timeout):
        while text not in said:
            line = await process.stdout.readline()
            assert line, f"it ended without saying {text!r}:\n{said}"
            said += line.decode()
    return said


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_demo_tells_its_story_and_leaves_nothing(temporary: Path) -> None:
    status, said = await ended(await start("demo"), 300)
    assert status == 0, said
    story = [
        "==> Starting ZooKeeper and three peers on 127.0.0.2, 127.0.0.3, 127.0.0.4",
        "the shard is complete after",
        "$ manatee-adm show -v",
        "generation:  ",
        "==> Writing numbered rows",
        "==> Killing the primary: SIGKILL",
        " was declared ",
        "no write was acknowledged for",
        "$ manatee-adm show -v",
        "generation:  ",
        "deposed  ",
        "rows that were acknowledged is there",
        "$ manatee-adm rebuild -y",
        "$ manatee-adm show -v",
        "generation:  ",
        "rows that were acknowledged is there",
        "==> Taking everything down",
        "nothing is left running",
    ]
    tells(said, story)
    last = said[said.rindex("$ manatee-adm show -v") :]
    assert len(re.findall(r"^(?:primary|sync|async) +[0-9a-f-]{36} 127\.0\.0\.\d", last, re.MULTILINE)) == 3
    assert "deposed" not in last
    assert list(temporary.iterdir()) == []
    assert not any(busy(ip, port) for ip in PEERS for port in (PORTS["postgres"], PORTS["backup"]))


@pytest.mark.slow
async def test_a_signal_takes_everything_down(temporary: Path) -> None:
    process = await start("demo.cluster")
    await read_until(process, "==> Running until Ctrl-C", 120)
    running = family(process.pid)
    assert len(running) > 10  # ZooKeeper, and three peers with PostgreSQL
    process.send_signal(signal.SIGTERM)
    status, said = await ended(process, 60)
    assert status == 128 + signal.SIGTERM, said
    assert [child for child in running if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
async def test_a_killed_run_leaves_no_process_and_the_next_one_works(temporary: Path) -> None:
    process = await start("demo.cluster")
    await read_until(process, "==> Running until Ctrl-C", 120)
    running = family(process.pid)
    process.kill()
    await ended(process, 30)
    async with asyncio.timeout(30):
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in running):
            await asyncio.sleep(0.1)
    (left,) = temporary.iterdir()
    second = await start("demo.cluster")
    await read_until(second, "==> Running until Ctrl-C", 120)
    assert not left.exists()
    second.send_signal(signal.SIGINT)
    assert (await ended(second, 60))[0] == 130
    assert list(temporary.iterdir()) == []


async def test_a_port_that_is_taken_is_said_in_one_sentence_and_nothing_starts(temporary: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), PEERS[1], PORTS["postgres"])
    try:
        status, said = await ended(await start("demo"), 60)
    finally:
        server.close()
    assert status == 1
    (complaint,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"in use by another program: {PEERS[1]}:{PORTS['postgres']}; nothing was started" in complaint
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []


async def test_a_version_that_is_not_here_is_said(temporary: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demo", "--postgresql", "9", cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, complaint = await process.communicate()
    assert process.returncode == 1
    assert "error: PostgreSQL 9 is not here (found PostgreSQL" in complaint.decode()

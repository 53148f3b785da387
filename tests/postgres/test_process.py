"""The server never outlives its sitter, and a start ends whatever an earlier one left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psycopg
import pytest

from sitter.postgres import configuration, leftovers, process
from sitter.postgres.configuration import ALONE, Replication
from sitter.postgres.errors import StartFailed
from sitter.postgres.tools import credentials
from tests.postgres.local import Machines, Node, until

SITTER = """
import asyncio, sys
from pathlib import Path
import structlog
from manatee.config import Settings
from sitter.postgres.process import Postmaster

async def main():
    postmaster = Postmaster(Settings.model_validate_json(sys.argv[1]), structlog.get_logger())
    await postmaster.start(Path(sys.argv[2]), timeout=20)
    print(postmaster.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def prepare(node: Node) -> Path:
    configuration.set_standby_signal(node.settings, False)
    foundation = await configuration.foundation(node.settings, None, version=node.version, timeout=5)
    return configuration.write(node.settings, foundation, Replication(ALONE, read_only=False))


async def sitter(node: Node) -> tuple[asyncio.subprocess.Process, int]:
    """Another process that starts the node's server, and that server's pid."""
    path = await prepare(node)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SITTER, node.settings.model_dump_json(), str(path)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    while not (line := await process.stdout.readline()).strip().isdigit():
        assert line, "the sitter's stand-in ended early"
    return process, int(line)


async def gone(node: Node) -> bool:
    return not await leftovers.servers(node.data_dir)


async def busy(node: Node) -> psycopg.AsyncConnection[tuple[object, ...]]:
    """A connection whose backend computes without ever waiting, so that it does not notice a dead postmaster."""
    connection = await node.connect()
    await connection.set_autocommit(True)
    connection.pgconn.send_query(b"do $$ begin loop end loop; end $$")
    connection.pgconn.flush()

    async def active() -> bool:
        return bool(await node.sql("select 1 from pg_stat_activity where query like 'do%loop%'"))

    await until(active)
    return connection


async def test_the_server_and_its_backends_die_with_the_sitter(machines: Machines) -> None:
    node = machines.initialized()
    process, _ = await sitter(node)
    await node_ready(node)
    connection = await busy(node)
    process.send_signal(signal.SIGKILL)
    await process.wait()

    async def ended() -> bool:
        return await gone(node)

    await until(ended, timeout=10)
    await connection.close()


async def node_ready(node: Node) -> None:
    async def ready() -> bool:
        lock = leftovers.lock_file(node.data_dir)
        return lock is not None and lock.status == "ready"

    await until(ready)


async def test_a_start_ends_the_server_of_a_dead_sitter(machines: Machines) -> None:
    """Where there is no parent-death signal, or it did not come: the old postmaster runs, with a busy backend."""
    node = machines.initialized()
    await node.start_primary()
    old = node.postmaster.pid
    connection = await busy(node)
    another = Node(node.settings, node.version)
    machines.nodes.append(another)
    await another.start_primary()
    assert another.postmaster.pid != old
    assert await another.value("select pg_postmaster_start_time() > now() - interval '10 s'")
    async with asyncio.timeout(5):
        await node.postmaster.exited.wait()
    await connection.close()


async def test_a_start_ends_orphaned_backends(machines: Machines) -> None:
    """A postmaster that was killed leaves busy backends; PostgreSQL itself would refuse to start beside them."""
    node = machines.initialized()
    await node.start_primary()
    connection = await busy(node)
    assert node.postmaster.pid
    os.kill(node.postmaster.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        await node.postmaster.exited.wait()
    assert node.postmaster.returncode == -signal.SIGKILL
    assert await leftovers.servers(node.data_dir)
    await node.start_primary()
    assert await node.value("select 1") == 1
    await connection.close()


async def test_a_server_that_hangs_is_killed(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    connection = await busy(node)
    leftovers.send(await leftovers.servers(node.data_dir), signal.SIGSTOP)
    await node.postmaster.stop("immediate", timeout=0.5)
    assert await gone(node)
    assert not node.postmaster.running
    await connection.close()


async def test_a_fast_stop_that_lasts_becomes_immediate(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    assert node.postmaster.pid
    walwriter = await node.value("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    os.kill(walwriter, signal.SIGSTOP)
    await node.postmaster.stop("fast", timeout=0.3)
    assert await gone(node)


async def test_a_clean_stop_is_clean(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    await node.postmaster.stop("fast", timeout=10)
    assert node.postmaster.returncode == 0
    assert node.postmaster.exited.is_set()
    assert any("database system is shut down" in line for line in node.postmaster.last_lines)


async def test_a_failed_start_gives_the_servers_own_reason(machines: Machines) -> None:
    node = machines.initialized()
    path = await prepare(node)
    path.write_text(path.read_text() + "shared_buffers = 'lots'\n")
    with pytest.raises(StartFailed, match="shared_buffers"):
        await node.postmaster.start(path, timeout=5)
    assert not node.postmaster.running


async def test_a_cancelled_start_leaves_nothing(machines: Machines) -> None:
    node = machines.initialized()
    path = await prepare(node)
    task = asyncio.create_task(node.postmaster.start(path, timeout=20))

    async def spawned() -> bool:
        return bool(await leftovers.servers(node.data_dir)) or task.done()

    await until(spawned)
    task.cancel()
    await asyncio.wait([task])
    await node.postmaster.stop("immediate", timeout=5)
    assert await gone(node)
    await node.start_primary()


async def test_another_programs_pid_in_the_lock_file_is_left_alone(machines: Machines) -> None:
    """After a reboot the pid in a stale lock file may be anybody's."""
    node = machines.initialized()
    process = await asyncio.create_subprocess_exec("sleep", "60", **credentials(node.settings))
    (node.data_dir / "postmaster.pid").write_text(f"{process.pid}\n{node.data_dir}\n1\n5432\n")
    await node.start_primary()
    assert process.returncode is None
    process.kill()
    await process.wait()


async def test_processes_are_found_without_proc(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    node = machines.initialized()
    await node.start_primary()
    checkpointer = await node.value("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    monkeypatch.setattr(leftovers, "_working_in", lambda _: set())
    assert await leftovers.servers(node.data_dir) >= {node.postmaster.pid, checkpointer}
    assert await leftovers.servers(node.data_dir / "other") == set()


async def test_long_lines_are_cut(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    await node.sql("do $$ begin raise log '%', repeat('x', 100000); end $$")
    await node.sql("do $$ begin raise log 'after'; end $$")

    async def after() -> bool:
        return any("after" in line for line in node.postmaster.last_lines)

    await until(after)
    assert max(map(len, node.postmaster.last_lines)) <= 2000


def test_what_the_server_repeats_is_passed_on_now_and_then() -> None:
    """A standby whose upstream is gone says so ten times a second; every other line comes through."""
    passed: list[str] = []

    class Logger:
        def info(self, _: str, *, line: str) -> None:
            passed.append(line)

    output = process._Log(Logger())  # type: ignore[arg-type]
    for pid in range(100, 120):
        lines = f"2026-01-01 00:00:00 [{pid}] FATAL: could not connect\n[1] LOG: at 0/{pid:X}00\n"
        output.data_received(lines.encode())
    output.data_received(b"[7] LOG: something else\n")
    assert passed == [
        "2026-01-01 00:00:00 [100] FATAL: could not connect",
        "[1] LOG: at 0/6400",
        "[7] LOG: something else",
    ]
    assert len(output.last) == 20

"""Every fault does what it says, and heals: a fault that strikes nothing would find nothing wrong with anybody.

They share one shard under load. Run by `make chaos-cases`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import pytest_asyncio

from demo.postgresql import choose
from demo.shard import LocalPeer
from tests.chaos import operator
from tests.chaos.chronicle import Chronicle
from tests.chaos.ensemble import NODES
from tests.chaos.faults import FAULTS, Undo, server_meant
from tests.chaos.history import Journal
from tests.chaos.lab import FAKETIME, Lab, complete
from tests.chaos.rounds import Result, under_way
from tests.chaos.schedule import Strike
from tests.chaos.slot import claimed, obstacle
from tests.chaos.stage import PATIENCE, Stage

ASKED_FOR = os.environ.get("MANATEE_CHAOS") == "cases"
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not ASKED_FOR, reason="a few seconds for each fault: make chaos-cases"),
    pytest.mark.skipif(bool(ASKED_FOR and obstacle()), reason=str(ASKED_FOR and obstacle())),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    journal = Journal(tmp_path_factory.mktemp("chaos") / "events.jsonl", echo=True)
    with claimed() as slot:
        lab = Lab(slot, journal, postgresql=choose(15), clocks=FAKETIME.exists())
        async with complete(lab), under_way(lab, Chronicle(lab)):
            yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def stage(lab: Lab) -> AsyncIterator[Stage]:
    """Complete before, and again after what was done."""
    stage = Stage(lab, Result(seed=0))
    await stage.complete()
    await stage.under_load()
    yield stage
    while not lab.idle:
        await asyncio.sleep(0.1)
    await stage.complete()


@asynccontextmanager
async def struck(stage: Stage, fault: str, target: str, *, chance: int = 0) -> AsyncIterator[Undo]:
    """Healed at the end."""
    undo = await FAULTS[fault].inject(stage.lab, Strike(0.0, fault, target, 0.0, chance))
    try:
        yield undo
    finally:
        await undo.heal()


async def becomes(holds: Callable[[], object], *, within: float = PATIENCE) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if holds():
            return True
        await asyncio.sleep(0.05)
    return False


# --- Processes ------------------------------------------------------------------------------------------------------

Processes = Callable[[Lab, LocalPeer], list[psutil.Process]]


def _program(name: str) -> Processes:
    def find(lab: Lab, peer: LocalPeer) -> list[psutil.Process]:
        process = lab.program(f"{name}-{peer.number}")
        return [process] if process else []

    return find


def _postmaster(lab: Lab, peer: LocalPeer) -> list[psutil.Process]:
    process = lab.postmaster(peer)
    return [process] if process else []


def _replication(lab: Lab, peer: LocalPeer) -> list[psutil.Process]:
    return lab.children_of_postgres(peer, "walsender") + lab.children_of_postgres(peer, "walreceiver")


def _dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _stopped(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() == psutil.STATUS_STOPPED]


@pytest.mark.parametrize(
    ("fault", "find"),
    [
        ("kill-sitter", _program("sitter")),
        ("kill-backupserver", _program("backupserver")),
        ("kill-postmaster", _postmaster),
        ("kill-backend", Lab.children_of_postgres),
        ("kill-peer", Lab.all_of),
        ("kill-two-peers", Lab.all_of),
        ("restart-sitter", _program("sitter")),
    ],
)
async def test_what_is_killed_is_dead(stage: Stage, fault: str, find: Processes) -> None:
    peer = await stage.primary()
    assert await becomes(lambda: find(stage.lab, peer)), await operator.ask(peer, "/state")
    before = find(stage.lab, peer)
    async with struck(stage, fault, stage.lab.node(peer)):
        least = 1 if fault == "kill-backend" else len(before)
        assert await becomes(lambda: sum(map(_dead, before)) >= least, within=2.0)
    assert await becomes(lambda: find(stage.lab, peer))


@pytest.mark.parametrize(
    ("fault", "find"),
    [
        ("stop-sitter", _program("sitter")),
        ("stop-backupserver", _program("backupserver")),
        ("stop-postmaster", _postmaster),
        ("stop-backends", Lab.children_of_postgres),
        ("stop-replication", _replication),
        ("stop-peer", Lab.all_of),
    ],
)
async def test_what_is_stopped_stands_still_until_it_heals(stage: Stage, fault: str, find: Processes) -> None:
    peer = await stage.primary()
    assert await becomes(lambda: find(stage.lab, peer)), await operator.ask(peer, "/state")
    before = find(stage.lab, peer)
    async with struck(stage, fault, stage.lab.node(peer)):
        least = len(before) // 2 if fault == "stop-backends" else len(before)
        assert await becomes(lambda: len(_stopped(before)) >= least, within=2.0)
    assert await becomes(lambda: not _stopped(before), within=2.0)


@pytest.mark.parametrize("fault", ["kill-zookeeper", "stop-zookeeper"])
async def test_a_server_of_zookeeper_dies_or_stands_still(stage: Stage, fault: str) -> None:
    node = await server_meant(stage.lab, "leader")
    process = stage.lab.program(node)
    assert process is not None
    async with struck(stage, fault, node):
        assert await becomes(lambda: _stopped([process]) or _dead(process), within=2.0)
    assert await becomes(lambda: stage.lab.program(node) and not _stopped([process]), within=2.0)


async def test_all_of_zookeeper_dies(stage: Stage) -> None:
    async with struck(stage, "kill-ensemble", "zookeeper"):
        assert [stage.lab.program(node) for node in NODES] == [None] * 3
    assert None not in [stage.lab.program(node) for node in NODES]


# --- The network ----------------------------------------------------------------------------------------------------


async def reach(lab: Lab, source: str, destination: str) -> str:
    """What becomes of a connection: `open`, `silent` or `refused`."""
    port = 2181 if destination in NODES else 5432
    code = f"""
import socket
try:
    socket.create_connection(({lab.network.nodes[destination]!r}, {port}), timeout=1).close()
    print("open")
except TimeoutError:
    print("silent")
except ConnectionRefusedError:
    print("refused")
"""
    argv = (*lab.network.inside(source), sys.executable, "-c", code)
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


@pytest.mark.parametrize(
    ("fault", "chance", "way", "becoming"),
    [
        ("isolate", 0, ("sync", "primary"), "silent"),
        ("isolate", 0, ("sync", "zk1"), "silent"),
        ("cut-from-zookeeper", 0, ("sync", "zk1"), "silent"),
        ("cut-from-upstream", 0, ("sync", "primary"), "silent"),
        ("one-way", 0, ("primary", "sync"), "silent"),
        ("one-way", 1, ("sync", "primary"), "silent"),
        ("refuse", 0, ("primary", "sync"), "refused"),
        ("refuse", 1, ("sync", "async"), "refused"),
        ("refuse", 3, ("primary", "sync"), "refused"),
        ("refuse-neighbour", 2, ("sync", "primary"), "refused"),
        ("zookeeper-without-majority", 0, ("primary", "zk2"), "silent"),
        ("zookeeper-away", 0, ("primary", "zk3"), "silent"),
    ],
)
async def test_what_is_cut_is_cut_until_it_heals(
    stage: Stage, fault: str, chance: int, way: tuple[str, str], becoming: str
) -> None:
    lab = stage.lab
    nodes = {role: lab.node(await stage.by_role(role)) for role in ("primary", "sync", "async")}
    source, destination = (nodes.get(name, name) for name in way)
    assert await reach(lab, source, destination) == "open"
    async with struck(stage, fault, nodes["sync"], chance=chance):
        assert await reach(lab, source, destination) == becoming
    assert await reach(lab, source, destination) == "open"


async def test_a_link_is_slow(stage: Stage) -> None:
    """By what PostgreSQL sends through it."""
    peer = await stage.sync()

    async def seconds() -> float:
        began = time.monotonic()
        async with await psycopg.AsyncConnection.connect(
            host=peer.ip, user="postgres", dbname="postgres", connect_timeout=30
        ) as connection:
            await connection.execute("select repeat('x', 65536)")
        return time.monotonic() - began

    fast = await seconds()
    async with struck(stage, "slow-link", stage.lab.node(peer), chance=3):
        assert await seconds() > fast + 0.5
    async with asyncio.timeout(PATIENCE):
        while await seconds() > fast + 0.5:
            pass


async def test_who_is_evicted_is_gone_and_comes_back(stage: Stage) -> None:
    peer = await stage.first_async()
    log = peer.log("sitter")
    told = log.read_text().count("removed from the active list by another peer")
    async with struck(stage, "evict", stage.lab.node(peer)):
        assert await becomes(lambda: log.read_text().count("removed from the active list by another peer") == told + 1)


# --- The machine, and the operator ----------------------------------------------------------------------------------


async def test_a_full_disk_has_no_byte_left(stage: Stage) -> None:
    peer = await stage.first_async()
    probe = peer.settings.storage.directory / "probe"
    async with struck(stage, "full-disk", stage.lab.node(peer)):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            probe.write_bytes(bytes(1 << 20))
    probe.write_bytes(bytes(1 << 20))
    probe.unlink()


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
async def test_a_clock_jumps_and_comes_back(stage: Stage) -> None:
    peer = await stage.primary()

    async def off() -> float:
        async with await psycopg.AsyncConnection.connect(
            host=peer.ip, user="postgres", dbname="postgres", connect_timeout=10
        ) as connection:
            row = await (await connection.execute("select extract(epoch from clock_timestamp())::float8")).fetchone()
        assert row is not None
        return abs(float(row[0]) - time.time())

    assert await off() < 10
    async with struck(stage, "clock-jump", stage.lab.node(peer)):
        async with asyncio.timeout(30):  # libfaketime reads its file again after ten seconds
            while await off() < 20:
                await asyncio.sleep(0.5)
    async with asyncio.timeout(30):
        while await off() > 10:
            await asyncio.sleep(0.5)


async def test_the_shard_is_frozen_and_unfrozen(stage: Stage) -> None:
    async with struck(stage, "freeze", "shard"):
        assert await becomes(lambda: stage.lab.last_state and stage.lab.last_state.frozen)
    assert not (await stage.state()).frozen


@pytest.mark.parametrize("target", ["sync", "async"])
async def test_a_promote_moves_the_peer_up(stage: Stage, target: str) -> None:
    before = await stage.state()
    assert before.sync is not None
    async with struck(stage, "promote", target):
        after = await stage.generation(before.generation + 1)
        assert after.sync is not None
        assert after.primary.id == (before.sync.id if target == "sync" else before.primary.id)
        assert after.sync.id == before.asyncs[0].id


async def test_a_rebuild_replaces_the_data(stage: Stage) -> None:
    peer = await stage.first_async()
    before = peer.settings.storage.data_dir.stat().st_ino
    async with struck(stage, "rebuild", "async"):
        assert await becomes(lambda: stage.lab.idle)
        assert peer.settings.storage.data_dir.stat().st_ino != before


@pytest.mark.parametrize("chance", [0, 1], ids=["the servers", "the receiver"])
async def test_a_restore_is_cut_in_the_middle(stage: Stage, chance: int) -> None:
    peer = await stage.first_async()
    victims = stage.lab.all_of(peer) if chance else _program("backupserver")(stage.lab, await stage.primary())
    async with struck(stage, "cut-restore", "async", chance=chance) as undo:
        assert "in the middle of the restore" in undo.said
        assert await becomes(lambda: all(map(_dead, victims)), within=5.0)


async def test_a_deposed_peer_is_reaped(stage: Stage) -> None:
    before, old = await stage.state(), await stage.primary()
    await stage.crash(old)
    await stage.generation(before.generation + 1)
    assert await becomes(lambda: stage.lab.last_state and stage.lab.last_state.deposed)
    async with struck(stage, "reap", "shard"):
        assert await becomes(lambda: stage.lab.last_state and not stage.lab.last_state.deposed)
        await stage.boot(old)


def test_every_fault_is_looked_at() -> None:
    text = Path(__file__).read_text()
    assert [name for name in FAULTS if f'"{name}"' not in text] == []

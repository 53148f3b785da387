"""The network does what the faults ask of it, and of a run nothing is left, not even of one that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.chaos import slot
from tests.chaos.slot import Slot, claimed
from tests.chaos.topology import Network, between

_OBSTACLE = slot.obstacle()
pytestmark = pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))

PORT = 5000


@pytest.fixture
def taken() -> Iterator[Slot]:
    with claimed() as slot:
        yield slot


@pytest.fixture
async def network(taken: Slot) -> AsyncIterator[Network]:
    """Two nodes; on the second somebody listens."""
    network = Network(taken, ["a", "b"])
    await network.start()
    listen = f"import socket; s = socket.create_server(('{network.nodes['b']}', {PORT})); print(flush=True); s.accept()"
    argv = (*network.inside("b"), sys.executable, "-c", f"{listen}\nwhile True: s.accept()")
    listener = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        assert listener.stdout is not None
        await listener.stdout.readline()
        yield network
    finally:
        with contextlib.suppress(ProcessLookupError):
            listener.kill()
        await listener.wait()


async def reach(network: Network, source: str) -> str:
    """What becomes of a connection to the listener."""
    code = f"""
import socket
try:
    socket.create_connection(('{network.nodes["b"]}', {PORT}), timeout=1)
    print('open')
except TimeoutError:
    print('silent')
except ConnectionRefusedError:
    print('refused')
"""
    prefix = network.inside(source) if source != "seat" else ()
    process = await asyncio.create_subprocess_exec(*prefix, sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


async def test_a_cut_drops_one_direction_and_is_mended_by_whoever_made_it(network: Network) -> None:
    assert await reach(network, "a") == "open"
    await network.cut([("a", "b")])
    await network.cut(between(["a"], ["b"]))
    assert await reach(network, "a") == "silent"
    assert await reach(network, "seat") == "open"
    await network.mend(between(["a"], ["b"]))
    assert await reach(network, "a") == "silent"
    await network.mend([("a", "b")])
    assert await reach(network, "a") == "open"


async def test_a_firewall_can_refuse(network: Network) -> None:
    await network.cut([("a", "b")], "refuse")
    assert await reach(network, "a") == "refused"
    await network.mend([("a", "b")], "refuse")
    assert await reach(network, "a") == "open"


async def test_a_link_can_be_slow_and_is_fast_again(network: Network) -> None:
    await network.slow("a", 64_000)
    await network.slow("a", 0)
    await network.slow("a", 0)
    assert await reach(network, "a") == "open"


def test_what_a_killed_run_left_is_cleared_by_the_next_that_gets_its_slot() -> None:
    """Namespaces with processes in them, interfaces, mounts and files."""
    script = """
import asyncio, os, subprocess, sys
from tests.chaos.slot import claimed
from tests.chaos.topology import Network
with claimed() as slot:
    network = Network(slot, ["a"])
    asyncio.run(network.start())
    disk = slot.directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "chaos", disk], check=True)
    argv = [*network.inside("a"), "sleep", "1000"]
    sleeper = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    print(slot.number, sleeper.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    number, sleeper = map(int, done.stdout.split())
    assert len(slot.left(Slot(number))) >= 4
    with claimed():
        pass
    assert slot.left(Slot(number)) == []
    assert not slot.lives(sleeper)

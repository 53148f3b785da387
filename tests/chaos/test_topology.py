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


async def test_a_link_is_slow_until_all_who_slowed_it_have_taken_it_back(network: Network) -> None:
    await network.slow("a", 512_000)
    await network.slow("a", 64_000)
    await network.hasten("a", 64_000)
    assert await sends(network, "a", 64 * 1024) > 0.5
    await network.hasten("a", 512_000)
    assert await sends(network, "a", 64 * 1024) < 0.5


async def sends(network: Network, source: str, size: int) -> float:
    """Seconds until so many bytes from a node have come to `b`."""
    receives = "import socket, sys, time\ns = socket.create_server(('', 4000)); print(flush=True); c, _ = s.accept()\n"
    receives += f"n = 0; t = time.monotonic()\nwhile n < {size}: n += len(c.recv(65536))\nprint(time.monotonic() - t)"
    sending = f"import socket; s = socket.create_connection(({network.nodes['b']!r}, 4000)); s.sendall(bytes({size}))"
    receiver = await asyncio.create_subprocess_exec(
        *network.inside("b"), sys.executable, "-c", receives, stdout=asyncio.subprocess.PIPE
    )
    assert receiver.stdout is not None
    await receiver.stdout.readline()
    sender = await asyncio.create_subprocess_exec(*network.inside(source), sys.executable, "-c", sending)
    output, _ = await receiver.communicate()
    await sender.wait()
    return float(output)


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

"""Who is seen dead: refused on both ports every time, while others answer. Anything else is no evidence."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import structlog

from sitter import neighbour
from sitter.neighbour import Lookout, doubts
from sitter.view import Neighbour

HOST = "127.21.9.1"
PATIENCE = 20.0

Place = tuple[str, int]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment changes no answer here."""
    monkeypatch.setattr(neighbour, "PATIENCE", 10.0)
    monkeypatch.setattr(neighbour, "FRESH", 60.0)


@contextmanager
def listening(*, backlog: int = 100, port: int = 0) -> Iterator[socket.socket]:
    """Somebody who is there; nothing is ever accepted, as by a process that is stopped."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((HOST, port))
        server.listen(backlog)
        yield server


@contextmanager
def silent() -> Iterator[Place]:
    """A port that neither accepts nor refuses: its backlog is full."""
    with ExitStack() as stack:
        server = stack.enter_context(listening(backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()


def refusing() -> Place:
    with listening() as server:
        place: Place = server.getsockname()
    return place


def peer(sitter: Place, postgres: Place, *witnesses: Place) -> Neighbour:
    return Neighbour("node-1", 7, "zone-A", sitter, postgres, witnesses)


@asynccontextmanager
async def looking_out(one: Neighbour) -> AsyncIterator[tuple[Lookout, asyncio.Event]]:
    changed = asyncio.Event()
    lookout = Lookout(structlog.get_logger(), changed.set)
    task = asyncio.create_task(lookout.run())
    lookout.want(one)
    try:
        yield lookout, changed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


# --- What counts as evidence ----------------------------------------------------------------------------------------


async def test_refused_on_both_ports_while_another_peer_answers_is_evidence() -> None:
    with listening() as witness:
        assert await doubts(peer(refusing(), refusing(), witness.getsockname())) is None


async def test_a_port_that_accepts_is_none() -> None:
    with listening() as witness, listening() as alive:
        there, away = alive.getsockname(), refusing()
        assert "PostgreSQL accepts" in (await doubts(peer(away, there, witness.getsockname())) or "")
        assert "sitter accepts" in (await doubts(peer(there, away, witness.getsockname())) or "")


async def test_a_port_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is with a host that vanished, and with a firewall that drops."""
    monkeypatch.setattr(neighbour, "PATIENCE", 0.2)
    with listening() as witness, silent() as mute:
        assert "does not answer" in (await doubts(peer(refusing(), mute, witness.getsockname())) or "")
        assert "does not answer" in (await doubts(peer(mute, refusing(), witness.getsockname())) or "")


async def test_a_network_that_refuses_everybody_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as witness, silent() as mute:
        dead = refusing(), refusing()
        assert "another peer" in (await doubts(peer(*dead, witness.getsockname(), refusing())) or "")
        assert "no other peer" in (await doubts(peer(*dead)) or "")
        monkeypatch.setattr(neighbour, "PATIENCE", 1.0)
        assert "no other peer" in (await doubts(peer(*dead, mute)) or "")


async def test_once_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is just being restarted refuses for a moment."""
    place = refusing()
    monkeypatch.setattr(neighbour, "INTERVAL", 0.3)
    with listening() as witness, ExitStack() as stack:

        def comes_back() -> None:
            stack.enter_context(listening(port=place[1]))

        asyncio.get_running_loop().call_later(0.1, comes_back)
        assert "accepts" in (await doubts(peer(refusing(), place, witness.getsockname())) or "")


@pytest.mark.parametrize("address", [(HOST, 70000), ("x" * 64, 5432), ("a\0b", 5432)], ids=["port", "label", "null"])
async def test_an_address_that_is_none_is_none(address: Place) -> None:
    """What another peer says of itself does not end this sitter."""
    assert "does not answer" in (await doubts(peer(address, address)) or "")
    assert await Lookout(structlog.get_logger(), lambda: None)._hold(peer(address, address)) is False


async def test_without_a_socket_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    dead = peer(refusing(), refusing())
    monkeypatch.setattr(socket, "socket", no_descriptor_left)
    assert "does not answer" in (await doubts(dead) or "")


# --- The connection -------------------------------------------------------------------------------------------------


async def test_a_connection_that_breaks_shows_a_death_at_once() -> None:
    with listening() as witness, listening() as sitter:
        one = peer(sitter.getsockname(), refusing(), witness.getsockname())
        async with looking_out(one) as (lookout, changed):
            await until(lambda: lookout.connected)
            assert lookout.death is None
            sitter.close()
            async with asyncio.timeout(PATIENCE):
                await changed.wait()
            assert lookout.death is not None
            assert (lookout.death.node, lookout.death.generation) == (one.node, one.generation)
            assert "4 times" in lookout.death.detail


async def test_a_connection_that_is_reset_at_once_is_one_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """illumos and macOS refuse options for a socket whose other end has reset it: a dying sitter does that."""

    def reset(_: socket.socket) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(neighbour, "_keep_alive", reset)
    with listening() as sitter:
        lookout = Lookout(structlog.get_logger(), lambda: None)
        assert await lookout._hold(peer(sitter.getsockname(), refusing())) is True
        assert not lookout.connected


async def test_a_death_is_void_in_another_generation_and_of_another_node() -> None:
    with listening() as witness:
        one = peer(refusing(), refusing(), witness.getsockname())
        async with looking_out(one) as (lookout, changed):
            async with asyncio.timeout(PATIENCE):
                await changed.wait()
            lookout.want(replace(one, generation=8))
            assert lookout.death is None
            lookout.want(replace(one, node="node-2"))
            assert lookout.death is None
            lookout.want(None)
            assert lookout.death is None


async def test_a_death_is_void_once_somebody_answers_again() -> None:
    place = refusing()
    with listening() as witness:
        async with looking_out(peer(place, refusing(), witness.getsockname())) as (lookout, changed):
            async with asyncio.timeout(PATIENCE):
                await changed.wait()
            with listening(port=place[1]):
                await until(lambda: lookout.connected)
                assert lookout.death is None


async def test_a_new_generation_of_the_same_session_keeps_the_connection() -> None:
    with listening() as witness, listening() as sitter:
        one = peer(sitter.getsockname(), refusing(), witness.getsockname())
        async with looking_out(one) as (lookout, _):
            await until(lambda: lookout.connected)
            sitter.setblocking(False)
            held, _ = sitter.accept()
            with held:
                lookout.want(replace(one, generation=8, witnesses=()))
                await asyncio.sleep(0)
                assert lookout.connected
                assert held.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                with pytest.raises(BlockingIOError):
                    sitter.accept()

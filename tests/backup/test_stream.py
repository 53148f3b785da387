"""The way of a snapshot that checks itself: by the kernel where it can, whole in any case, and over with either end."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from backupserver.bandwidth import Bandwidth
from demo.postgresql import Installation
from manatee.storage import pipe
from sitter.source import SourceFailed, TargetStalled, connect
from tests.backup.plain import Sender, drain, expected, serving, take
from tests.backup.sandbox import TOKEN, Peer, Sandbox, eventually

SIZE = 48 << 20


@pytest.fixture
def peer(sandbox: Sandbox, any_postgresql: Installation) -> Peer:
    return sandbox.peer(any_postgresql)


@pytest.fixture
def impatient(sandbox: Sandbox, any_postgresql: Installation) -> Peer:
    return sandbox.peer(any_postgresql, idle_timeout=1.0)


class Copied:
    """Counts what passes through this process's pipes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        read, write = pipe.read, pipe.write

        async def counted_read(fd: int, limit: int = pipe.CHUNK) -> bytes:
            chunk = await read(fd, limit)
            self.bytes += len(chunk)
            return chunk

        async def counted_write(fd: int, chunk: bytes) -> None:
            self.bytes += len(chunk)
            await write(fd, chunk)

        patch.setattr(pipe, "read", counted_read)
        patch.setattr(pipe, "write", counted_write)


async def test_the_kernel_moves_it_at_both_ends(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = Copied(monkeypatch)
    async with serving(peer, Sender(SIZE)) as source:
        taken = await take(source, peer.settings)
    assert (taken.bytes, taken.sha256) == (SIZE, expected(SIZE))
    assert copied.bytes < 4 << 20  # what comes with the headers


async def test_where_it_cannot_the_bytes_are_copied(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> int:
        raise pipe.NotSpliceable

    monkeypatch.setattr(pipe, "splice_all", refused)
    copied = Copied(monkeypatch)
    async with serving(peer, Sender(SIZE)) as source:
        taken = await take(source, peer.settings)
    assert taken.sha256 == expected(SIZE)
    assert copied.bytes == 2 * SIZE


async def test_who_speaks_http_1_1_gets_it_in_chunks(peer: Peer) -> None:
    async with serving(peer, Sender(SIZE)) as source, aiohttp.ClientSession() as session:
        asked = session.get(f"{source.backup_url}/v2/backup", headers={"Authorization": f"Bearer {TOKEN}"})
        async with asked as response:
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert response.headers["Manatee-Digest"] == "none"
            assert len(await response.read()) == SIZE


@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_a_stream_that_is_over_before_it_is_looked_at_is_whole(peer: Peer, size: int) -> None:
    async with (
        serving(peer, Sender(size)) as source,
        connect(source, peer.settings) as server,
        server.backup({}) as stream,
    ):
        await asyncio.sleep(0.1)  # the connection is at its end by then
        assert (await drain(stream)).sha256 == expected(size)


async def test_what_a_receiver_wants_may_be_long(peer: Peer) -> None:
    sender, wanted = Sender(1), {"have": "1" * 100_000}
    async with serving(peer, sender) as source:
        await take(source, peer.settings, wanted=wanted)
    assert sender.wanted == wanted


async def test_a_sender_that_failed_is_told_from_one_that_has_finished(peer: Peer) -> None:
    async with serving(peer, Sender(SIZE, fails="zfs send was killed")) as source:
        with pytest.raises(SourceFailed, match="broke off; the sender says: zfs send was killed"):
            await take(source, peer.settings)


@pytest.mark.parametrize("version", [aiohttp.HttpVersion10, aiohttp.HttpVersion11])
async def test_a_stream_is_at_its_end_before_its_sender_tidies_up_and_whatever_comes_of_that(
    peer: Peer, version: aiohttp.HttpVersion
) -> None:
    sender = Sender(1 << 20, untidy=True)
    async with serving(peer, sender) as source, connect(source, peer.settings) as server:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(version=version, headers=headers) as asking:
            response = await asking.get(f"{source.backup_url}/v2/backup")
            async with asyncio.timeout(20):
                assert len(await response.read()) == 1 << 20
        stream = response.headers["Manatee-Backup"]
        assert sender.running == 1
        assert (await server.outcome(stream)).state == "done"
        sender.go_on.set()
        await eventually(lambda: not sender.running)
        assert (await server.outcome(stream)).state == "done"


async def test_a_sender_that_stands_still_is_given_up_by_both(impatient: Peer) -> None:
    sender = Sender(SIZE, stops_at=1 << 20)
    async with serving(impatient, sender) as source:
        with pytest.raises(SourceFailed, match="no byte came for 1 s|the sender gave no byte for 1 s"):
            await take(source, impatient.settings)
        async with asyncio.timeout(10):
            while sender.running:
                await asyncio.sleep(0.01)
    assert sender.moved == 1 << 20  # its storage is told, to know whether the receiver can go on with it


async def test_a_receiver_that_stands_still_is_given_up_by_both(impatient: Peer) -> None:
    sender = Sender(SIZE)
    async with serving(impatient, sender) as source:
        with pytest.raises((TargetStalled, SourceFailed), match="nothing was taken for 1 s|took no byte for 1 s"):
            await take(source, impatient.settings, stops_at=1 << 20)
        async with asyncio.timeout(10):
            while sender.running:
                await asyncio.sleep(0.01)


async def test_a_sender_whose_receiver_has_gone_ends(peer: Peer) -> None:
    sender = Sender(SIZE, stops_at=1 << 20)
    async with serving(peer, sender) as source:
        async with connect(source, peer.settings) as server, server.backup({}):
            assert sender.running == 1
        async with asyncio.timeout(10):
            while sender.running:
                await asyncio.sleep(0.01)


async def test_the_status_shows_how_far_it_is(peer: Peer) -> None:
    sender = Sender(SIZE, stops_at=SIZE // 2)
    async with serving(peer, sender) as source, aiohttp.ClientSession() as session:

        async def ask(path: str) -> str:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with session.get(f"{source.backup_url}{path}", headers=headers) as response:
                return await response.text()

        async with connect(source, peer.settings) as server, server.backup({}) as stream:
            draining = asyncio.create_task(drain(stream))
            async with asyncio.timeout(20):
                while f'"bytes": {SIZE // 2}' not in (said := await ask(f"/v2/backup/{stream.id}")):
                    await asyncio.sleep(0.05)
            assert f'"size": {SIZE}' in said
            await asyncio.sleep(0.6)
            assert '"bytes_per_second": null' not in await ask(f"/v2/backup/{stream.id}")
            metrics = await ask("/metrics")
            assert value(metrics, "manatee_backup_streams") == 1
            assert value(metrics, "manatee_backup_streams_bytes") == SIZE // 2
            assert value(metrics, "manatee_backup_streams_expected_bytes") == SIZE
            sender.go_on.set()
            await draining
        while value(metrics := await ask("/metrics"), "manatee_backup_streams"):
            await asyncio.sleep(0.05)
        assert value(metrics, "manatee_backup_sent_bytes_total") == SIZE


def value(metrics: str, name: str) -> float:
    """As Prometheus reads it."""
    return float(metrics.split(f"\n{name} ")[1].split("\n", maxsplit=1)[0])


async def test_all_streams_together_keep_to_the_limit(sandbox: Sandbox, any_postgresql: Installation) -> None:
    limit, size = 8 << 20, 6 << 20
    peer = sandbox.peer(any_postgresql, bandwidth_limit=limit)
    async with serving(peer, Sender(size)) as source:
        began = time.monotonic()
        await asyncio.gather(*(take(source, peer.settings) for _ in range(2)))
        assert time.monotonic() - began > 0.8 * 2 * size / limit


async def test_no_burst_makes_up_for_a_pause_and_nothing_is_lost_to_a_sender_that_gives_less() -> None:
    bandwidth = Bandwidth(lambda: 1000)
    await asyncio.sleep(0.3)
    assert sum([await bandwidth.reserve(1000) for _ in range(2)]) <= 100
    reserved = await bandwidth.reserve(1000)
    bandwidth.give_back(reserved)
    began = time.monotonic()
    await bandwidth.reserve(reserved)
    assert time.monotonic() - began < 5.0
    assert await Bandwidth(lambda: None).reserve(1 << 20) == 1 << 20
    assert await Bandwidth(lambda: 1).reserve(1 << 20) == 1

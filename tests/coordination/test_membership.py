"""Joining and leaving: an election node counts as ours only in the session that made it, and goes with that session."""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import time
from itertools import pairwise

import pytest
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperServer
from manatee.cluster import PeerStatus
from manatee.coordination import Coordination, CoordinationError, OutcomeUnknown, Unreachable
from tests.coordination.stage import ADDRESS, Party, Proxy, free_port, peer, raw_client, state, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

STATUS = PeerStatus(initialized=True, generation=1)


async def test_joining_twice_in_one_session_is_joining_once(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    await member.join(peer(1))
    assert raw.get_children(f"{root}/election") == [(await member.read()).joined]


async def test_a_join_whose_answer_was_lost_is_found_again(
    zookeeper: ZooKeeperServer, connect: Party, proxy: Proxy, raw: KazooClient, root: str
) -> None:
    member = await connect(proxy.servers, request_timeout=1.0)
    await member.join(peer(1))
    await member.resign()
    proxy.swallow_on = b'"zoneId"'
    with pytest.raises(OutcomeUnknown):
        await member.join(peer(1))
    await until(lambda: len(raw.get_children(f"{root}/election")) == 1)
    proxy.heal()
    await until(lambda: len(connect.said("connected to ZooKeeper")) == 2)
    assert (await member.read()).joined in raw.get_children(f"{root}/election")
    await member.publish(STATUS)
    await member.join(peer(1))
    assert len(raw.get_children(f"{root}/election")) == 1
    await member.resign()
    assert raw.get_children(f"{root}/election") == []


async def test_who_resigned_is_gone_with_its_status_and_may_join_again(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    await member.publish(STATUS)
    first = (await member.read()).joined
    await member.resign()
    assert raw.get_children(f"{root}/election") == raw.get_children(f"{root}/status") == []
    await member.resign()
    with pytest.raises(CoordinationError, match="not joined"):
        await member.publish(STATUS)
    await member.join(peer(1))
    await member.publish(STATUS)
    view = await member.read()
    assert view.joined is not None
    assert view.joined != first
    assert view.active[0].status == STATUS


async def test_closing_removes_our_nodes_at_once(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers, session_timeout=60)
    await member.join(peer(1))
    await member.publish(STATUS)
    await member.close()
    assert raw.get_children(f"{root}/election") == raw.get_children(f"{root}/status") == []
    assert not member.connected


async def test_an_expired_session_is_replaced_and_whoever_it_was_joins_again(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    changes: list[int | None] = []
    member = await connect(zookeeper.servers, on_change=lambda: changes.append(connect.made[0].session_id))
    await member.join(peer(1))
    await member.publish(STATUS)
    before = await member.read()
    first = member.session_id
    end_session(zookeeper, member)
    await until(lambda: member.connected and member.session_id != first)
    await until(lambda: changes[-1:] == [member.session_id])
    view = await member.read()
    assert view.joined is None
    assert view.active == ()
    with pytest.raises(CoordinationError, match="not joined"):
        await member.publish(STATUS)
    await member.join(peer(1))
    await member.publish(STATUS)
    view = await member.read()
    assert view.joined not in (None, before.joined)
    assert view.active[0].status == STATUS
    assert connect.said("ZooKeeper session has ended")


async def test_resigning_from_an_ended_session_is_no_error(zookeeper: ZooKeeperServer, connect: Party) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    first = member.session_id
    end_session(zookeeper, member)
    await until(lambda: member.connected and member.session_id != first)
    await member.resign()
    assert (await member.read()).joined is None


def end_session(zookeeper: ZooKeeperServer, member: Coordination) -> None:
    """What expiry does, without waiting for it: another client closes the session, knowing its password."""
    client = member._session._client
    assert client is not None
    thief = KazooClient(zookeeper.servers, client_id=client.client_id)
    thief.start(timeout=10)
    thief.stop()
    thief.close()


async def test_without_zookeeper_everything_fails_at_once_and_says_why(connect: Party) -> None:
    servers = f"{ADDRESS}:{free_port()}"
    member = await connect(servers, within=None)
    with pytest.raises(Unreachable, match=f"ZooKeeper at {servers} cannot be reached"):
        await connect(servers, within=0.3)
    started = time.monotonic()
    for call in (
        member.read(),
        member.join(peer(1)),
        member.write_state(state(1), version=0),
        member.history(),
        member.shards(),
        member.require_shard(),
    ):
        with pytest.raises(Unreachable, match="Connection refused"):
            await call
    assert time.monotonic() - started < 0.2
    assert not member.connected
    assert not member.write_open
    started = time.monotonic()
    await member.close()
    assert time.monotonic() - started < 1


async def test_zookeeper_killed_for_longer_than_the_session_timeout_finds_the_session_again(
    own_zookeeper: ZooKeeperServer, connect: Party
) -> None:
    changes: list[bool] = []
    member = await connect(own_zookeeper.servers, on_change=lambda: changes.append(connect.made[0].connected))
    other = await connect(own_zookeeper.servers)
    await member.join(peer(1))
    await member.publish(STATUS)
    before, session = await member.read(), member.session_id
    await own_zookeeper.kill()
    await until(lambda: not member.connected)
    lost = time.monotonic()
    with pytest.raises(Unreachable):
        await member.read()
    await until(lambda: time.monotonic() - lost > 5)
    assert 4 < member.disconnected_for < 7
    await own_zookeeper.start()
    serving = time.monotonic()
    await until(lambda: member.connected)
    assert time.monotonic() - serving < 2  # half a second, but for a busy machine
    assert member.disconnected_for == 0
    assert member.session_id == session
    assert await member.read() == before
    assert changes[-2:] == [False, True]
    # Watches are armed again, and what was published is still known to be published.
    told = len(changes)
    await until(lambda: other.connected)
    await other.join(peer(2))
    await until(lambda: len(changes) > told)
    await member.publish(STATUS)
    assert [active.peer for active in (await member.read()).active] == [peer(1), peer(2)]


async def test_zookeeper_is_tried_again_every_half_second_for_as_long_as_it_is_down(connect: Party) -> None:
    attempts: list[float] = []

    def turn_away(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        writer.transport.abort()

    door = await asyncio.start_server(turn_away, ADDRESS, free_port())
    host, port = door.sockets[0].getsockname()
    await connect(f"{host}:{port}", within=None)
    await until(lambda: len(attempts) >= 12, within=40)
    door.close()
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert statistics.median(pauses) < 1.0, "half a second, and what a busy machine adds to it"


@pytest.mark.parametrize("wiped", [False, True])
async def test_a_zookeeper_that_forgot_is_joined_with_a_new_session(
    own_zookeeper: ZooKeeperServer, connect: Party, wiped: bool, root: str
) -> None:
    """It refuses sessions that have seen more than it knows, for ever, in the way of one that is still starting."""
    saved = own_zookeeper.directory.with_name("saved")
    member = await connect(own_zookeeper.servers, session_timeout=2)
    with raw_client(own_zookeeper.servers) as raw:
        raw.ensure_path("/something")
    await own_zookeeper.kill()
    shutil.copytree(own_zookeeper.directory / "data", saved)
    await own_zookeeper.start()
    await until(lambda: member.connected)
    first = member.session_id
    await member.join(peer(1))
    await own_zookeeper.kill()
    shutil.rmtree(own_zookeeper.directory / "data")
    if not wiped:
        saved.rename(own_zookeeper.directory / "data")
    await own_zookeeper.start()
    await until(lambda: member.connected)
    assert member.session_id != first
    assert (await member.read()).joined is None
    await member.join(peer(1))
    assert (await member.read()).joined is not None


async def test_a_silent_server_is_noticed_and_the_silence_counts_from_the_last_word(
    connect: Party, proxy: Proxy, zookeeper: ZooKeeperServer
) -> None:
    member = await connect(proxy.servers, session_timeout=2)
    await member.read()
    spoke = time.monotonic()
    proxy.swallow = True
    await proxy.shut()
    await until(lambda: not member.connected)
    noticed = time.monotonic() - spoke
    assert noticed < 2
    assert member.disconnected_for > noticed - 0.5


async def test_a_process_that_slept_does_not_trust_its_connection(zookeeper: ZooKeeperServer, connect: Party) -> None:
    member = await connect(zookeeper.servers, session_timeout=4)
    member._session._pulse.heard -= 5
    assert not member.connected
    assert member.disconnected_for > 5
    with pytest.raises(Unreachable):
        await member.read()
    await until(lambda: member.connected)


async def test_a_server_that_is_gone_without_a_word_does_not_keep_us_from_the_others(
    zookeeper: ZooKeeperServer, connect: Party
) -> None:
    with socket.socket() as dead, socket.socket() as first, socket.socket() as second:
        dead.bind((ADDRESS, 0))
        dead.listen(0)
        for filler in (first, second):  # the queue is full now: who connects next gets no answer
            filler.setblocking(False)
            filler.connect_ex(dead.getsockname())
        servers = f"{ADDRESS}:{dead.getsockname()[1]},{zookeeper.servers}"
        for _ in range(4):  # kazoo tries them in random order
            started = time.monotonic()
            member = await connect(servers, session_timeout=4)
            assert time.monotonic() - started < 3
            await member.close()


async def test_a_session_and_its_watches_move_to_another_server(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    """Two doors to one server, as of an ensemble; the one in use is shut."""
    doors = [Proxy(zookeeper.port), Proxy(zookeeper.port)]
    for door in doors:
        await door.open()
    changes: list[float] = []
    member = await connect(",".join(door.servers for door in doors), on_change=lambda: changes.append(time.monotonic()))
    await member.join(peer(1))
    before, session = await member.read(), member.session_id
    for door in doors:
        if door.connections:
            await door.shut()
            door.heal()
    await until(lambda: len(connect.said("connected to ZooKeeper")) == 2, within=2)
    assert member.session_id == session
    assert await member.read() == before
    told = len(changes)
    raw.create(f"{root}/state", state(1).content())
    await until(lambda: len(changes) > told)
    for door in doors:
        await door.close()


async def test_the_granted_session_timeout_is_known(zookeeper: ZooKeeperServer, connect: Party) -> None:
    member = await connect(zookeeper.servers, session_timeout=100)
    assert member.session_timeout == pytest.approx(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_connection_thread_that_dies_is_replaced(zookeeper: ZooKeeperServer, connect: Party) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    client, first = member._session._client, member.session_id
    assert client is not None

    def fail(*_: object) -> None:
        raise ZeroDivisionError("unexpected")

    client._connection._read_response = fail
    with pytest.raises(Unreachable):
        await member.history()
    await until(lambda: member.connected and member.session_id != first)
    await member.join(peer(1))
    view = await member.read()
    assert view.joined == view.active[-1].node

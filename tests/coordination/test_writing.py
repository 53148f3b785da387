"""The cluster state is written with its history or not at all, and a write whose answer was lost is settled."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperServer
from manatee.cluster import Cluster, ClusterState
from manatee.coordination import Conflict, Coordination, CoordinationError, OutcomeUnknown, Unreachable
from tests.coordination.stage import Party, Proxy, peer, state, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

SETUP = Cluster(created="2026-01-16T08:08:33.000Z", by=peer(1).id)


def entries(raw: KazooClient, root: str) -> list[str]:
    """The names in history, oldest first."""
    return sorted(raw.get_children(f"{root}/history"), key=lambda name: str(name)[-10:])


async def begin(member: Coordination, generation: int = 1) -> None:
    await member.join(peer(1))
    await member.write_state(state(generation), version=None)


async def test_the_state_and_its_history_are_what_was_written(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    before = time.time()
    await member.write_state(state(1), version=None, cluster=SETUP)
    view = await member.read()
    assert (view.state, view.version, view.cluster, view.has_history) == (state(1), 0, SETUP, True)
    await member.write_state(state(2), version=0)
    await member.write_state(state(2, freeze=True), version=1, history_prefix=0)
    assert entries(raw, root) == ["1-0000000000", "2-0000000001", "0-0000000002"]
    for number, name in enumerate(entries(raw, root)):
        data, stat = raw.get(f"{root}/history/{name}")
        assert data == [state(1), state(2), state(2, freeze=True)][number].content()
        assert stat.ephemeralOwner == 0
    assert (await member.read()).state == state(2, freeze=True)
    history = await member.history()
    assert [(one.name, one.generation, one.state) for one in history] == [
        ("1-0000000000", 1, state(1)),
        ("2-0000000001", 2, state(2)),
        ("0-0000000002", 2, state(2, freeze=True)),
    ]
    assert all(before - 1 <= one.time <= time.time() + 1 for one in history)


async def test_fields_nobody_here_knows_survive_a_rewrite(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    document = {**state(4).document(), "colour": {"deep": [1, 2.5, None, "é"]}, "freeze": {"date": "d", "by": "me"}}
    document["sync"]["rack"] = 7
    raw.create(f"{root}/state", ClusterState.of(document).content())
    view = await member.read()
    assert view.state is not None
    await member.write_state(view.state.replace(generation=5), version=view.version)
    view = await member.read()
    assert view.state is not None
    assert view.state.document() == {**document, "generation": 5}


async def test_history_is_known_to_have_begun_even_when_the_state_is_gone(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    watcher, writer = await connect(zookeeper.servers), await connect(zookeeper.servers)
    await watcher.join(peer(2))
    assert not (await watcher.read()).has_history
    await begin(writer)
    raw.delete(f"{root}/state")
    await until(lambda: _has_history(watcher))
    assert (await watcher.read()).state is None


async def _has_history(member: Coordination) -> bool:
    return (await member.read()).has_history


async def test_of_two_writers_one_writes_and_the_other_leaves_no_trace(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    one, two = await connect(zookeeper.servers), await connect(zookeeper.servers)
    await begin(one)
    results = await asyncio.gather(
        one.write_state(state(2, colour="one"), version=0),
        two.write_state(state(2, colour="two"), version=0),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "NoneType"]
    assert len(entries(raw, root)) == 2
    assert not one.write_open
    assert not two.write_open


async def test_a_set_up_happens_once_or_not_at_all(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    raw.create(f"{root}/cluster", SETUP.content())
    with pytest.raises(Conflict):
        await member.write_state(state(1), version=None, cluster=SETUP)
    view = await member.read()
    assert (view.state, view.has_history, member.write_open) == (None, False, False)
    raw.delete(f"{root}/cluster")
    await member.write_state(state(1), version=None, cluster=SETUP)
    with pytest.raises(Conflict):
        await member.write_state(state(1, colour="other"), version=None)
    assert len(entries(raw, root)) == 1
    assert (await member.read()).state == state(1)


async def test_a_state_that_is_gone_is_a_conflict(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await begin(member)
    raw.delete(f"{root}/state")
    with pytest.raises(Conflict):
        await member.write_state(state(2), version=0)


async def test_a_shard_that_never_had_history_gets_one(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    raw.create(f"{root}/state", state(1).content(), makepath=True)
    member = await connect(zookeeper.servers)
    with pytest.raises(Conflict):
        await member.write_state(state(2), version=0)
    await member.write_state(state(2), version=0)
    assert entries(raw, root) == ["2-0000000000"]


async def test_history_shows_what_it_cannot_read(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await begin(member)
    raw.create(f"{root}/history/7-", b'{"generation": 7}', sequence=True)
    raw.create(f"{root}/history/8-", b"{", sequence=True)
    made = [raw.create_async(f"{root}/history/{n}-", state(n).content(), sequence=True) for n in range(250)]
    assert all(one.wait(10) for one in made)
    history = await member.history()
    assert [(one.generation, one.state is None, one.problem is None) for one in history[:4]] == [
        (1, False, True),
        (7, True, False),
        (None, True, False),
        (0, False, True),
    ]
    assert [one.generation for one in history[3:]] == list(range(250))


async def test_the_identity_is_completed_over_what_was_read(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    await member.write_state(state(1), version=None, cluster=SETUP)
    await member.read()
    complete = SETUP.replace(system_identifier="7324123412341234123", pg_version="18.1")
    raw.set(f"{root}/cluster", SETUP.content())
    with pytest.raises(Conflict):
        await member.complete_cluster(complete)
    view = await member.read()
    assert view.cluster == SETUP
    await member.complete_cluster(complete)
    assert (await member.read()).cluster == complete


async def test_a_shard_inherited_from_manatee_2_gets_an_identity_once(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    one, two = await connect(zookeeper.servers), await connect(zookeeper.servers)
    await begin(one)
    await one.read()
    await two.read()
    await one.complete_cluster(SETUP)
    with pytest.raises(Conflict):
        await two.complete_cluster(SETUP.replace(by=peer(2).id))
    assert (await two.read()).cluster == SETUP


# A write whose answer is missing --------------------------------------------------------------------------------------


async def lose_answer(member: Coordination, *, version: int | None, generation: int) -> None:
    with pytest.raises(OutcomeUnknown):
        await member.write_state(state(generation), version=version)
    assert member.write_open
    with pytest.raises(CoordinationError, match="not settled"):
        await member.write_state(state(generation), version=version)


def remember(member: Coordination) -> list[tuple[Any, ...]]:
    """The transactions that are sent from now on."""
    sent: list[tuple[Any, ...]] = []
    commit = member._session.commit

    async def remembered(*operations: Any) -> list[Any]:
        sent.append(operations)
        return await commit(*operations)

    member._session.commit = remembered  # type: ignore[method-assign]
    return sent


def lands(raw: KazooClient, operations: tuple[Any, ...]) -> bool:
    """Whether a transaction that was under way all the time can still be done."""
    late = raw.transaction()
    late.operations.extend(operations)
    return not any(isinstance(answer, Exception) for answer in late.commit())


async def reconnected(proxy: Proxy, connect: Party) -> None:
    times = len(connect.said("connected to ZooKeeper"))
    proxy.heal()
    await until(lambda: len(connect.said("connected to ZooKeeper")) > times)


@pytest.mark.parametrize("broken", [False, True])
async def test_a_write_that_landed_unseen_is_settled_by_reading(
    connect: Party, proxy: Proxy, raw: KazooClient, root: str, broken: bool
) -> None:
    member = await connect(proxy.servers, request_timeout=5.0 if broken else 1.0)
    await begin(member)
    if broken:  # the connection is cut right after sending; else the answer just does not come
        proxy.cut_on = b'"generation": 2'
    else:
        proxy.swallow = True
    await lose_answer(member, version=0, generation=2)
    await until(lambda: raw.get(f"{root}/state")[1].version == 1)
    await reconnected(proxy, connect)
    await member.settle()
    assert not member.write_open
    view = await member.read()
    assert (view.state, view.version) == (state(2), 1)
    assert entries(raw, root) == ["1-0000000000", "2-0000000001"]


async def test_a_write_that_did_not_land_can_not_land_once_it_is_settled(
    connect: Party, proxy: Proxy, raw: KazooClient, root: str
) -> None:
    member = await connect(proxy.servers, request_timeout=1.0)
    await begin(member)
    proxy.hold = True
    sent = remember(member)
    await lose_answer(member, version=0, generation=2)
    await reconnected(proxy, connect)
    assert member.write_open
    await member.settle()
    assert not member.write_open
    view = await member.read()
    assert (view.state, view.version) == (state(1), 1)
    assert entries(raw, root) == ["1-0000000000", "1-0000000001"]
    assert not lands(raw, sent[0])
    await member.write_state(state(2), version=1)


async def test_a_write_that_lands_late_is_found_by_settling(
    connect: Party, proxy: Proxy, raw: KazooClient, root: str
) -> None:
    """It arrives after we have lost the connection, and before we have another."""
    member = await connect(proxy.servers, request_timeout=5.0)
    await begin(member)
    proxy.hold = True
    write = asyncio.create_task(member.write_state(state(2), version=0))
    await until(lambda: any(b'"generation": 2' in data for _, data in proxy.held))
    await proxy.shut()
    proxy.cut_client()
    with pytest.raises(OutcomeUnknown):
        await write
    assert raw.get(f"{root}/state")[1].version == 0
    with pytest.raises(Unreachable):
        await member.settle()
    assert member.write_open
    await proxy.release()
    await until(lambda: raw.get(f"{root}/state")[1].version == 1)
    proxy.hold = False
    await proxy.open()
    await until(lambda: member.connected)
    await member.settle()
    assert (await member.read()).state == state(2)
    assert len(entries(raw, root)) == 2


async def test_settling_whose_own_answer_is_lost_is_not_settled(
    connect: Party, proxy: Proxy, raw: KazooClient, root: str
) -> None:
    member = await connect(proxy.servers, request_timeout=1.0)
    await begin(member)
    proxy.hold = True
    await lose_answer(member, version=0, generation=2)
    await reconnected(proxy, connect)
    proxy.swallow_on = b'"generation": 1'
    with pytest.raises(OutcomeUnknown):
        await member.settle()
    assert member.write_open
    await reconnected(proxy, connect)
    await member.settle()
    assert not member.write_open
    assert (await member.read()).state == state(1)
    assert len(entries(raw, root)) == 2


@pytest.mark.parametrize("landed", [False, True])
async def test_an_open_set_up_is_settled_either_way(
    connect: Party, proxy: Proxy, raw: KazooClient, root: str, landed: bool
) -> None:
    member = await connect(proxy.servers, request_timeout=1.0)
    await member.join(peer(1))
    sent = remember(member)
    if landed:
        proxy.swallow_on = b'"generation"'
    else:
        proxy.hold_on = b'"generation"'
    await lose_answer(member, version=None, generation=1)
    await reconnected(proxy, connect)
    await member.settle()
    assert not member.write_open
    assert (await member.read()).state == (state(1) if landed else None)
    if not landed:
        assert not lands(raw, sent[0])
        await member.write_state(state(1), version=None, cluster=SETUP)


async def test_after_a_restart_a_write_of_the_former_process_is_shut_out(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    await begin(await connect(zookeeper.servers))
    member = await connect(zookeeper.servers)
    member.assume_open()
    assert member.write_open
    await member.settle()
    assert not member.write_open
    view = await member.read()
    assert (view.state, view.version) == (state(1), 1)
    await member.settle()
    assert (await member.read()).version == 1
    raw.delete(f"{root}/history", recursive=True)
    member.assume_open()
    await member.settle()
    assert entries(raw, root) == ["1-0000000000"]
    raw.delete(f"{root}/state")
    member.assume_open()
    before = raw.get(root)[1].version
    await member.settle()
    assert raw.get(root)[1].version == before + 1


async def test_a_state_that_does_not_validate_is_not_written_again(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    raw.create(f"{root}/state", b'{"generation": "1"}')
    member.assume_open()
    with pytest.raises(CoordinationError, match="generation"):
        await member.settle()
    assert member.write_open
    assert raw.get(f"{root}/state")[1].version == 0
    assert entries(raw, root) == []


async def test_what_was_not_sent_is_never_sent(
    connect: Party, zookeeper: ZooKeeperServer, raw: KazooClient, root: str
) -> None:
    """A request still in the queue at its deadline is withdrawn from it: Unreachable, and not OutcomeUnknown."""
    member = await connect(zookeeper.servers, request_timeout=1.0)
    await begin(member)
    client = member._session._client
    assert client is not None
    submit, stuck = client._connection._submit, threading.Event()

    def blocked(*arguments: Any) -> None:
        stuck.wait(10)
        submit(*arguments)

    client._connection._submit = blocked
    with pytest.raises(Unreachable):
        await member.write_state(state(2), version=0)
    assert not member.write_open
    client._connection._submit = submit
    stuck.set()
    await member.read()  # over the same connection, so after the withdrawn one
    assert raw.get(f"{root}/state")[1].version == 0
    assert len(connect.said("connected to ZooKeeper")) == 1
    await member.write_state(state(2), version=0)


async def test_a_write_is_not_sent_over_another_connection(
    connect: Party, zookeeper: ZooKeeperServer, raw: KazooClient, root: str
) -> None:
    """kazoo would send what it has queued as soon as it has reconnected, be it in another session."""
    member = await connect(zookeeper.servers)
    await begin(member)
    client = member._session._client
    assert client is not None
    call = client._call

    def late(request: Any, result: Any) -> None:  # queued after the connection is lost, before that is known here
        client._session_callback("CONNECTING")
        call(request, result)
        client._session_callback("CONNECTED")

    client._call = late
    with pytest.raises(Unreachable):
        await member.write_state(state(2), version=0)
    client._call = call
    assert not member.write_open
    assert raw.get(f"{root}/state")[1].version == 0
    await member.write_state(state(2), version=0)


async def test_a_cancelled_write_stays_open(connect: Party, proxy: Proxy, raw: KazooClient, root: str) -> None:
    member = await connect(proxy.servers)
    await begin(member)
    proxy.swallow = True
    write = asyncio.create_task(member.write_state(state(2), version=0))
    await until(lambda: raw.get(f"{root}/state")[1].version == 1)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert member.write_open

"""A dead peer's election node is removed, that very one; a live peer that finds its own gone joins again."""

from __future__ import annotations

import pytest
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperServer
from manatee.cluster import PeerStatus
from manatee.coordination import CoordinationError, OutcomeUnknown
from tests.coordination.stage import Party, Proxy, peer, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

STATUS = PeerStatus(initialized=True, generation=1)
AGAIN = "removed from the active list by another peer, which has seen this one dead: joining again"


async def test_an_evicted_peer_is_gone_with_its_status(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    dead, silent, alive = [await connect(zookeeper.servers) for _ in range(3)]
    for number, one in enumerate((dead, silent, alive)):
        await one.join(peer(number))
    await dead.publish(STATUS)
    await alive.publish(STATUS)
    before = await alive.read()
    for gone in before.active[:2]:
        await alive.evict(gone.node)
        await alive.evict(gone.node)  # that it is gone already is no error
    left = [before.active[2].node]
    assert raw.get_children(f"{root}/election") == raw.get_children(f"{root}/status") == left


async def test_an_eviction_that_comes_late_harms_no_newer_node(zookeeper: ZooKeeperServer, connect: Party) -> None:
    one, other = [await connect(zookeeper.servers) for _ in range(2)]
    await one.join(peer(1))
    old = (await one.read()).joined
    assert old is not None
    await one.resign()
    await one.join(peer(1))
    await other.evict(old)
    assert [each.peer for each in (await other.read()).active] == [peer(1)]


async def test_a_live_peer_that_was_evicted_joins_again_and_says_so(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    changes: list[None] = []
    alive = await connect(zookeeper.servers, on_change=lambda: changes.append(None))
    other = await connect(zookeeper.servers)
    await alive.join(peer(1))
    await alive.publish(STATUS)
    first = await alive.read()
    told = len(changes)
    assert first.joined is not None
    await other.evict(first.joined)
    await until(lambda: len(changes) > told)
    assert (await alive.read()).joined is None
    assert connect.said(AGAIN) == []
    await alive.join(peer(1))
    await alive.publish(STATUS)
    after = await alive.read()
    assert after.joined not in (None, first.joined)
    assert (after.active[0].status, after.active[0].session) == (STATUS, first.active[0].session)
    assert [said["node"] for said in connect.said(AGAIN)] == [first.joined]


async def test_who_resigned_without_hearing_of_it_does_not_blame_another(
    zookeeper: ZooKeeperServer, connect: Party, proxy: Proxy, raw: KazooClient, root: str
) -> None:
    one = await connect(proxy.servers, request_timeout=1.0)
    await one.join(peer(1))
    await one.publish(STATUS)
    proxy.swallow_on = b"/status/"
    with pytest.raises(OutcomeUnknown):
        await one.resign()
    await until(lambda: raw.get_children(f"{root}/election") == [])
    proxy.heal()
    await until(lambda: len(connect.said("connected to ZooKeeper")) == 2)
    await one.join(peer(1))
    assert len(raw.get_children(f"{root}/election")) == 1
    assert connect.said(AGAIN) == []


@pytest.mark.parametrize("said_before", [False, True])
async def test_no_status_is_left_beside_an_election_node_that_is_gone(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str, said_before: bool
) -> None:
    alive, other = [await connect(zookeeper.servers) for _ in range(2)]
    await alive.join(peer(1))
    if said_before:
        await alive.publish(STATUS)
    (node,) = raw.get_children(f"{root}/election")
    await other.evict(node)
    with pytest.raises(CoordinationError):
        await alive.publish(STATUS.model_copy(update={"proof": 1}))
    assert raw.get_children(f"{root}/status") == []

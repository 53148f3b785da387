"""A set-up that was never finished is given to another peer, and only then."""

from __future__ import annotations

import re
from typing import Any

import pytest

from admin.requests import Refused
from admin.setup import handed_over
from demo.postgresql import choose
from demo.shard import LocalPeer, LocalShard
from manatee.cluster import Cluster, ClusterState, PeerStatus
from manatee.coordination import Coordination, HistoryEntry
from tests.admin.shapes import NOW, A, B, C, D, active, state, view_of
from tests.admin.stage import PEERS, Coordinated, manatee_adm, state_of_chain

BEGUN = state(generation=1, initWal="0/00000000", unknown=1)
UNFINISHED = Cluster(created="2026-01-16T08:00:00.000Z", by=A.id, system_identifier=None)


def empty(who: Any, **said: Any) -> Any:
    return active(who, **{"initialized": False, "serving": False, "ready": False, "generation": 1, **said})


def hand_over(before: ClusterState, present: Any, cluster: Cluster | None = UNFINISHED, **more: Any) -> Any:
    return handed_over(before, view_of(before, present, cluster=cluster), more.get("history", ()), NOW)


def test_the_first_peer_without_data_creates_the_database_in_the_same_generation() -> None:
    new, cluster = hand_over(BEGUN, (empty(C), empty(D), empty(B)))
    assert new.document() == {
        **BEGUN.document(), "primary": C.document(), "sync": D.document(), "async": [B.document()], "deposed": [],
    }  # fmt: skip
    assert (cluster.by, cluster.system_identifier) == (C.id, None)
    alone = BEGUN.replace(sync=None, asyncs=(), one_node_write_mode=True)
    new, cluster = hand_over(alone, (empty(C),))
    assert (new.primary, new.sync, new.one_node_write_mode, cluster.by) == (C, None, True, C.id)


@pytest.mark.parametrize(
    ("before", "present", "cluster", "said"),
    [
        (BEGUN, (empty(B), empty(C)), UNFINISHED.replace(system_identifier="7"), "its database exists"),
        (BEGUN, (empty(B), empty(C)), None, "its database exists"),
        (BEGUN.replace(generation=2), (empty(B), empty(C)), UNFINISHED, "its database exists"),
        (BEGUN, (empty(A), empty(B), empty(C)), UNFINISHED, "6589d30f is there, and creates the database"),
        (BEGUN, (empty(B), empty(C, initialized=True)), UNFINISHED, "a7fdcdaa has a database"),
        (BEGUN, (empty(B), active(C, promises=False)), UNFINISHED, "a7fdcdaa has a database"),
        (BEGUN, (empty(B), active(C, silent=True)), UNFINISHED, "a7fdcdaa has not said yet"),
        (BEGUN, (empty(B), empty(C, generation=3)), UNFINISHED, "a7fdcdaa has acted on generation 3"),
        (BEGUN, (empty(B),), UNFINISHED, "1 peers without data are connected, 2 are needed"),
    ],
)
def test_it_is_refused_wherever_there_may_be_a_database(before: Any, present: Any, cluster: Any, said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        hand_over(before, present, cluster)


def test_a_history_of_more_than_a_set_up_is_believed() -> None:
    history = [HistoryEntry("7-0000000001", NOW, 7, None, "bad")]
    with pytest.raises(Refused, match="ZooKeeper is older than the shard"):
        hand_over(BEGUN, (empty(B), empty(C)), history=history)


async def test_one_transaction_hands_it_over(shard: Coordinated) -> None:
    cluster = Cluster(created="2026-01-16T08:00:00.000Z", by=PEERS[0].id, system_identifier=None)
    await shard.coordination.write_state(state_of_chain(), version=None, cluster=cluster)
    lonely = await manatee_adm("restart-setup", "-y", *shard.options)
    assert lonely.err == "manatee-adm: 0 peers without data are connected, 2 are needed: start their sitters\n"
    others = [await connected(shard, peer) for peer in PEERS[1:]]
    try:
        run = await manatee_adm("restart-setup", "-y", *shard.options)
        assert run.status == 0, run
        assert f"aaaaaaaa has not created the database of {shard.name}; bbbbbbbb will" in run.out
        view = await shard.coordination.read()
        assert view.state is not None
        assert view.cluster is not None
        assert (view.state.generation, view.state.primary, view.state.sync) == (1, PEERS[1], PEERS[2])
        assert view.cluster.by == PEERS[1].id
        assert (await shard.coordination.history())[-1].name.startswith("0-")
        again = await manatee_adm("restart-setup", "-y", *shard.options)
        assert "bbbbbbbb is there, and creates the database" in again.err
    finally:
        for each in others:
            await each.close()


async def test_whoever_finishes_first_wins(shard: Coordinated) -> None:
    """The peer that was to create the database records it in the same moment."""
    cluster = Cluster(created="2026-01-16T08:00:00.000Z", by=PEERS[0].id, system_identifier=None)
    await shard.coordination.write_state(state_of_chain(), version=None, cluster=cluster)
    view = await shard.coordination.read()
    late = Coordination(shard.coordination._settings, shard.coordination.root, shard.coordination._log)
    await late.start(within=10)
    try:
        await late.read()
        await late.complete_cluster(cluster.replace(system_identifier="7"))
        from manatee.coordination import Conflict

        new = state_of_chain(primary=PEERS[1].document(), sync=PEERS[2].document(), **{"async": []})
        with pytest.raises(Conflict):
            await shard.coordination.write_state(
                new, version=view.version, cluster=cluster.replace(by=PEERS[1].id), over_cluster=True
            )
    finally:
        await late.close()
    assert (await shard.state()).primary == PEERS[0]


async def connected(shard: Coordinated, who: Any) -> Coordination:
    import structlog

    coordination = Coordination(shard.coordination._settings, shard.coordination.root, structlog.get_logger())
    await coordination.start(within=10)
    await coordination.join(who)
    await coordination.publish(PeerStatus(initialized=False, generation=1))
    return coordination


class Unwritable(LocalShard):
    """A shard none of whose peers can create a database yet."""

    async def start_peer(self, peer: LocalPeer) -> None:
        peer.settings.storage.directory.chmod(0o000)
        await super().start_peer(peer)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_shard_begins_after_all_when_the_first_to_try_is_gone() -> None:
    addresses = ("127.14.8.2", "127.14.8.3", "127.14.8.4")
    async with Unwritable(addresses, name="demo", zookeeper=("127.14.8.1", 2181), postgresql=choose()) as whole:
        options = ("-z", whole.zookeeper.servers, "-s", "demo")
        began = (await whole.wait_for(lambda seen: seen.state and len(seen.present) == 3, timeout=60)).state
        assert began is not None
        first = whole.peer(began.primary.id)
        there = await manatee_adm("restart-setup", "-y", *options)
        assert f"{first.label} is there, and creates the database" in there.err
        told = await manatee_adm("verify", *options)
        assert f'error: the set-up is not complete: "{first.label}" has yet to create the database\n' in told.out
        await whole.stop_peer(first)
        await whole.wait_for(lambda seen: first.id not in seen.present, timeout=60)
        for peer in whole.peers:
            peer.settings.storage.directory.chmod(0o700)
        done = await manatee_adm("restart-setup", "-y", *options)
        assert done.status == 0, done
        await whole.wait_for(lambda seen: seen.complete(2), timeout=90)
        await LocalShard.start_peer(whole, first)
        await whole.wait_for(lambda seen: seen.complete(3), timeout=90)
        history = await manatee_adm("history", "-v", *options)
        assert f"set-up handed over from {first.label}: primary" in history.out

"""`read` shows the shard as it is, whatever others have written, and `on_change` tells of every change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial

import pytest
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperServer, four_letters
from manatee.cluster import Cluster, PeerStatus
from manatee.coordination import Coordination, NoSuchShard
from tests.coordination.stage import Party, manatee2_data, peer, state, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def elect(raw: KazooClient, root: str, name: str, data: bytes, *, sequence: bool = True) -> str:
    raw.ensure_path(f"{root}/election")
    made: str = raw.create(f"{root}/election/{name}", data, ephemeral=True, sequence=sequence)
    return made.rsplit("/", 1)[1]


async def test_a_shard_that_does_not_exist_yet_reads_as_nothing(zookeeper: ZooKeeperServer, connect: Party) -> None:
    view = await (await connect(zookeeper.servers)).read()
    assert (view.state, view.state_problem, view.version, view.cluster) == (None, None, None, None)
    assert (view.has_history, view.active, view.joined) == (False, (), None)


async def test_the_active_list_is_in_the_order_of_joining_not_of_names(
    zookeeper: ZooKeeperServer, connect: Party
) -> None:
    names = []
    for number in (3, 1, 2):
        member = await connect(zookeeper.servers)
        await member.join(peer(number))
        names.append((await member.read()).joined)
    view = await (await connect(zookeeper.servers)).read()
    assert [active.peer for active in view.active] == [peer(3), peer(1), peer(2)]
    assert [active.node for active in view.active] == names
    assert view.joined is None
    assert all(active.promises_status and active.status is None for active in view.active)


async def test_the_sequence_is_the_last_ten_digits_whatever_the_id_holds(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    first = elect(raw, root, "fd00::2-b:5432:12345-", manatee2_data(peer(2)))
    second = elect(raw, root, "fd00::1-a-0000000009:5432:12345-", manatee2_data(peer(1)))
    view = await (await connect(zookeeper.servers)).read()
    assert [active.node for active in view.active] == [first, second]
    assert [active.peer.id for active in view.active] == ["fd00::2-b:5432:12345", "fd00::1-a-0000000009:5432:12345"]


async def test_several_nodes_of_one_id_count_once_at_their_newest(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    elect(raw, root, f"{peer(1).id}-", manatee2_data(peer(1)))
    elect(raw, root, f"{peer(2).id}-", manatee2_data(peer(2)))
    newest = await connect(zookeeper.servers)
    await newest.join(peer(1))
    view = await newest.read()
    assert [active.peer.id for active in view.active] == [peer(2).id, peer(1).id]
    assert view.joined == view.active[1].node
    assert view.active[1].promises_status


async def test_a_manatee_2_peer_promises_no_status(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    elect(raw, root, f"{peer(1).id}-", manatee2_data(peer(1)))
    (active,) = (await (await connect(zookeeper.servers)).read()).active
    assert active.peer == peer(1)
    assert not active.promises_status


async def test_our_election_node_is_what_manatee_2_expects_and_a_promise(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    (name,) = raw.get_children(f"{root}/election")
    data, stat = raw.get(f"{root}/election/{name}")
    assert json.loads(data) == {**json.loads(manatee2_data(peer(1))), "status": True}
    assert stat.ephemeralOwner == member.session_id
    acl, _ = raw.get_acls(f"{root}/election")
    assert {(one.id.scheme, one.id.id, one.perms) for one in acl} == {("world", "anyone", 31)}


async def test_what_a_peer_adds_to_its_election_node_stays_out_of_its_identity(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    data = json.dumps({**json.loads(manatee2_data(peer(1))), "status": True, "colour": "grey"}).encode()
    elect(raw, root, f"{peer(1).id}-", data)
    (active,) = (await (await connect(zookeeper.servers)).read()).active
    assert active.peer.document() == peer(1).document()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b'{"ip": "10.0.0.9"}', b"\xff\xfe", b'{"zoneId": 5}'])
async def test_a_stranger_in_the_election_is_shown_and_logged_and_harms_nobody(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str, data: bytes
) -> None:
    name = elect(raw, root, "stranger-", data)
    unnamed = elect(raw, root, "not-numbered", manatee2_data(peer(2)), sequence=False)
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    view = await member.read()
    assert [active.peer for active in view.active] == [peer(1)]
    assert {stranger for stranger, _ in view.unreadable} == {name, unnamed}
    await member.read()
    logged = connect.said("a node in ZooKeeper is not what it should be")
    assert {one["path"] for one in logged} == {f"{root}/election/{name}", f"{root}/election/{unnamed}"}
    assert len(logged) == 2


async def test_a_bad_state_gives_the_path_of_its_bad_field(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    document = state(5).document()
    document["async"][0]["pgUrl"] = None
    raw.create(f"{root}/state", json.dumps(document).encode(), makepath=True)
    raw.create(f"{root}/cluster", b"{}")
    view = await (await connect(zookeeper.servers)).read()
    assert view.state is None
    assert view.state_problem is not None
    assert view.state_problem.startswith("async.0.pgUrl:")
    assert view.version == 0
    # A `cluster` that cannot be read must not pass for one that is missing.
    assert view.cluster is None
    assert view.cluster_problem is not None
    assert view.cluster_problem.startswith("created:")


async def test_a_status_belongs_to_the_election_node_of_its_name_and_session(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    one, two, three = [await connect(zookeeper.servers) for _ in range(3)]
    await one.join(peer(1))
    await two.join(peer(2))
    await three.join(peer(3))
    await one.publish(PeerStatus(initialized=True, serving=True, generation=3))
    raw.create(f"{root}/status/{(await two.read()).joined}", PeerStatus(initialized=True).content(), ephemeral=True)
    raw.create(f"{root}/status/{peer(3).id}-0000000099", PeerStatus(initialized=True).content(), ephemeral=True)
    statuses = [active.status for active in (await one.read()).active]
    assert statuses == [PeerStatus(initialized=True, serving=True, generation=3), None, None]


async def test_a_status_that_cannot_be_read_says_nothing(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    await member.publish(PeerStatus(initialized=True))
    (name,) = raw.get_children(f"{root}/status")
    raw.set(f"{root}/status/{name}", b'{"initialized": "perhaps"}')
    await until(lambda: _status_is_none(member))


async def _status_is_none(member: Coordination) -> bool:
    return (await member.read()).active[0].status is None


class Changes:
    """Counts the calls of `on_change`."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    def more_than(self, count: int) -> bool:
        return self.count > count


async def test_on_change_tells_of_each_kind_of_change_again_and_again(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    changes = Changes()
    watcher = await connect(zookeeper.servers, on_change=changes)
    election, status = f"{root}/election", f"{root}/status"
    name = f"{peer(1).id}-0000000007"
    raw.ensure_path(status)
    promising = json.dumps({**json.loads(manatee2_data(peer(1))), "status": True}).encode()
    steps: dict[str, Callable[[], object]] = {
        "election made": lambda: raw.create(election, makepath=True),
        "a peer comes": lambda: raw.create(f"{election}/{name}", promising, ephemeral=True),
        "its status": lambda: raw.create(f"{status}/{name}", PeerStatus(initialized=False).content(), ephemeral=True),
        "another status": lambda: raw.set(f"{status}/{name}", PeerStatus(initialized=True).content()),
        "its status goes": lambda: raw.delete(f"{status}/{name}"),
        "a state": lambda: raw.create(f"{root}/state", state(1).content()),
        "another state": lambda: raw.set(f"{root}/state", state(2).content()),
        "yet another": lambda: raw.set(f"{root}/state", state(3).content()),
        "the state goes": lambda: raw.delete(f"{root}/state"),
        "the state is back": lambda: raw.create(f"{root}/state", state(4).content()),
        "cluster": lambda: raw.create(f"{root}/cluster", Cluster(created="now", by="1").content()),
        "cluster completed": lambda: raw.set(f"{root}/cluster", Cluster(created="now", by="2").content()),
        "the peer goes": lambda: raw.delete(f"{election}/{name}"),
        "another peer": lambda: raw.create(f"{election}/{peer(2).id}-0000000009", manatee2_data(peer(2))),
    }
    before = await watcher.read()
    for what, step in steps.items():
        count = changes.count
        step()
        await until(partial(changes.more_than, count))
        after = await watcher.read()
        assert what == "election made" or after != before, what
        before = after


async def test_what_is_read_goes_together(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    """A set-up writes `state` and `cluster` at once: the one is never seen without the other, with or without cache."""
    member = await connect(zookeeper.servers)
    raw.ensure_path(f"{root}/election")
    for number in range(200):
        transaction = raw.transaction()
        if number % 2 == 0:
            transaction.create(f"{root}/state", state(number).content())
            transaction.create(f"{root}/cluster", Cluster(created="now", by="1").content())
        else:
            transaction.delete(f"{root}/cluster")
            transaction.delete(f"{root}/state")
        answer = transaction.commit_async()
        while not answer.ready():
            view = await member.read()
            assert (view.state is None) == (view.cluster is None)
            await asyncio.sleep(0)


async def test_a_burst_of_changes_is_told_once_until_it_is_read(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    changes = Changes()
    member = await connect(zookeeper.servers, on_change=changes)
    await member.join(peer(1))
    raw.create(f"{root}/state", state(1).content())
    await member.read()
    await asyncio.sleep(0)
    before = changes.count
    for number in (2, 3, 4):
        elect(raw, root, f"{peer(number).id}-", manatee2_data(peer(number)))
    raw.set(f"{root}/state", state(2).content())
    raw.create(f"{root}/cluster", Cluster(created="now", by="1").content())
    await until(lambda: changes.count > before)
    await asyncio.sleep(0.1)  # for those that should not come
    assert changes.count == before + 1
    view = await member.read()
    assert view.state is not None
    assert view.state.generation == 2
    assert len(view.active) == 4


async def test_reading_what_has_not_changed_asks_nothing_of_zookeeper(
    zookeeper: ZooKeeperServer, connect: Party, root: str
) -> None:
    member = await connect(zookeeper.servers, session_timeout=60)
    await member.join(peer(1))
    await member.publish(PeerStatus(initialized=False))
    await member.read()
    await member.read()
    before = await received(zookeeper, member)
    for _ in range(100):
        await member.read()
        await member.publish(PeerStatus(initialized=False))
    assert await received(zookeeper, member) == before


async def received(zookeeper: ZooKeeperServer, member: Coordination) -> int:
    """How many requests the server has had from this session."""
    text = await four_letters("cons", zookeeper.address, zookeeper.port)
    assert member.session_id is not None
    (line,) = [line for line in text.splitlines() if f"sid={member.session_id:#x}" in line]
    return int(line.split("recved=")[1].split(",")[0])


async def test_an_unknown_shard_names_the_known_ones(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient, root: str
) -> None:
    raw.ensure_path("/other/1.moray")
    raw.ensure_path("/other/2.moray")
    with pytest.raises(NoSuchShard, match=r"3\.moray.*1\.moray, 2\.moray"):
        await (await connect(zookeeper.servers, root="/other/3.moray")).require_shard()
    known = await connect(zookeeper.servers, root="/other/2.moray")
    await known.require_shard()
    assert await known.shards() == ["1.moray", "2.moray"]
    with pytest.raises(NoSuchShard, match="none"):
        await (await connect(zookeeper.servers, root="/nowhere/3.moray")).require_shard()


async def test_what_has_not_changed_is_not_put_together_again(
    zookeeper: ZooKeeperServer, connect: Party, raw: KazooClient
) -> None:
    member = await connect(zookeeper.servers)
    await member.join(peer(1))
    before = await member.read()
    assert await member.read() is before
    elect(raw, member.root, f"{peer(2).id}-", manatee2_data(peer(2)))
    await until(lambda: _reads_two(member))


async def _reads_two(member: Coordination) -> bool:
    return len((await member.read()).active) == 2

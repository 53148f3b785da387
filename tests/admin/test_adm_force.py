"""Breaking glass on real shards: what the operator is told, what is written, and that the shard is whole again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import psycopg
import pytest

from demo.postgresql import choose
from demo.shard import LocalPeer, LocalShard, Seen
from manatee.client import Topology, connect_primary
from tests.admin.stage import Run, manatee_adm, until

SETTLE = 240.0


@pytest.fixture
async def whole() -> AsyncIterator[LocalShard]:
    """Three peers, complete."""
    addresses = ("127.14.7.2", "127.14.7.3", "127.14.7.4")
    async with LocalShard(addresses, name="demo", zookeeper=("127.14.7.1", 2181), postgresql=choose()) as shard:
        await shard.wait_for(lambda seen: seen.complete(3), timeout=SETTLE)
        yield shard


async def run(shard: LocalShard, *words: str, typed: str = "") -> Run:
    return await manatee_adm(*words, "-z", shard.zookeeper.servers, "-s", shard.name, typed=typed)


def chain(shard: LocalShard, seen: Seen) -> list[LocalPeer]:
    assert seen.state is not None
    return [shard.peer(peer.id) for peer in seen.state.assigned]


async def write(shard: LocalShard, statement: str) -> None:
    async with (
        Topology(shard.zookeeper.servers, shard.name) as topology,
        await connect_primary(topology, deadline=60) as connection,
    ):
        await connection.execute(statement)


async def count(peer: LocalPeer) -> int:
    async with await psycopg.AsyncConnection.connect(host=peer.ip, user="postgres", dbname="postgres") as connection:
        row = await (await connection.execute("SELECT count(*) FROM kept")).fetchone()
    assert row is not None
    return int(row[0])


async def says(shard: LocalShard, text: str) -> Run:
    """`verify`, as soon as it says so."""

    async def look() -> Run | None:
        found = await run(shard, "verify")
        return found if text in found.out + found.err else None

    found = await until(look, timeout=60)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_with_two_of_three_lost_the_third_goes_on_by_an_operators_word(whole: LocalShard) -> None:
    primary, sync, last = chain(whole, await whole.look())
    refused = await run(whole, "force-primary", "-n", last.label, "-r", "try", "--accept-loss", "demo")
    assert refused.err.startswith(f"manatee-adm: the primary lives: {primary.label} has all that was acknowledged")
    await write(whole, "CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
    await whole.kill_peer(primary, sync)

    told = await says(whole, "nobody else may take over")
    assert f'error: peer "{last.label}" (async 0): proof of generation 1, timeline 1, WAL flushed up to 0/' in told.out
    assert f'error: peer "{primary.label}" (primary): absent: what it holds is not known' in told.out
    gone = f"all that {primary.label} and {sync.label} had beyond 0/"
    assert f'error: peer "{last.label}": to go on with its data would lose {gone}' in told.out

    looked = await run(whole, "force-primary")
    assert looked.status == 1
    assert f'with the data of "{last.label}" would be lost: {gone}' in looked.out
    wrong = await run(whole, "force-primary", "-n", last.label, "-r", "both burnt", typed="yes\n")
    assert wrong.err == 'manatee-adm: "yes" is not the name of this shard, demo: nothing was changed\n'
    other = await run(whole, "force-primary", "-n", last.label, "-r", "both burnt", "--accept-loss", "other")
    assert (other.status, other.out) == (1, "")
    seen = await whole.look()
    assert seen.state is not None
    assert seen.state.generation == 1

    done = await run(whole, "force-primary", "-n", last.label, "-r", "both burnt", typed="demo\n")
    assert done.status == 0, done
    assert f"You vouch for it that nothing of Manatee or PostgreSQL runs on {primary.label} ({primary.ip})" in done.out
    assert f"{last.label} accepts writes." in done.out
    assert "manatee-adm unfreeze" in done.out
    await write(whole, "INSERT INTO kept VALUES (101)")

    for peer in (primary, sync):
        await whole.start_peer(peer)
    await run(whole, "unfreeze")
    await whole.wait_for(lambda seen: seen.complete(3), timeout=SETTLE)
    assert [await count(peer) for peer in whole.peers] == [101, 101, 101]
    history = (await run(whole, "history", "-v")).out
    assert (
        f"an operator forced {last.label} to be primary in place of {primary.label} (deposed) (both burnt)" in history
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_zookeeper_that_was_wiped_learns_from_its_peers_who_was_primary(whole: LocalShard) -> None:
    primary, _, _ = chain(whole, await whole.look())
    await write(whole, "CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
    await whole.zookeeper.stop()
    for path in (whole.directory / "zookeeper").rglob("version-2"):
        shutil.rmtree(path)
    await whole.zookeeper.start()
    told = await says(whole, "knows of generation 1: ZooKeeper has lost its data")
    assert told.err.startswith("manatee-adm: ZooKeeper holds no cluster state of demo, but ")

    # Whoever has not found back to ZooKeeper yet is taken for absent, and the primary would be alone.
    await whole.wait_for(lambda seen: len(seen.present) == 3 and all(seen.present.values()), timeout=SETTLE)

    async def offered() -> bool:
        looked = await run(whole, "force-primary")
        return f'with the data of "{primary.label}" would be lost: nothing: it is the primary' in looked.out

    await until(offered, timeout=60)
    done = await run(whole, "force-primary", "-n", primary.label, "-r", "ZooKeeper was wiped", "--accept-loss", "demo")
    assert done.status == 0, done
    await whole.wait_for(lambda seen: seen.complete(3), timeout=SETTLE)
    assert [await count(peer) for peer in whole.peers] == [100, 100, 100]

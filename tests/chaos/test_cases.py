"""Named cases, each with its expected outcome: what an operator may count on, one kind of trouble at a time.

They share one shard under load, in namespaces; each begins with a complete chain. Whatever they do, what was
acknowledged is there in the end, by one writer at a time. Run by `make chaos-cases`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from demo.postgresql import choose
from tests.chaos.chronicle import Chronicle
from tests.chaos.history import Journal
from tests.chaos.lab import SLOWNESS, Lab, complete
from tests.chaos.report import write_report
from tests.chaos.rounds import Result, look_at_everything, under_way
from tests.chaos.slot import claimed, obstacle
from tests.chaos.stage import Stage
from tests.chaos.topology import between

ASKED_FOR = os.environ.get("MANATEE_CHAOS") == "cases"
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not ASKED_FOR, reason="the named cases take fifteen minutes: make chaos-cases"),
    pytest.mark.skipif(bool(ASKED_FOR and obstacle()), reason=str(ASKED_FOR and obstacle())),
]

SESSION = 8.0 * SLOWNESS
"""Seconds after which a silent peer is absent."""
SHORT = 2.0
"""Seconds of a partition that is well below that."""
OUTPUT = Path("build/chaos/cases")
"""Where the timeline, the picture and the logs of the last run are."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    journal = Journal(tmp_path_factory.mktemp("chaos") / "events.jsonl", echo=True)
    with claimed() as slot:
        lab = Lab(slot, journal, peers=4, begin_with=3, session_timeout=SESSION, postgresql=choose(15))
        try:
            async with complete(lab):
                yield lab
        finally:
            if lab.peers:
                OUTPUT.mkdir(parents=True, exist_ok=True)
                write_report(OUTPUT, lab, Result(seed=0))


@pytest.fixture(scope="module")
def chronicle(lab: Lab) -> Chronicle:
    return Chronicle(lab)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(lab: Lab, chronicle: Chronicle) -> AsyncIterator[Stage]:
    """Before each case the shard is complete; after it, all promises hold of everything so far."""
    result = Result(seed=0)
    async with under_way(lab, chronicle):
        stage = Stage(lab, result)
        await stage.complete()
        await stage.under_load()
        yield stage
        await look_at_everything(lab, result)
    assert list(map(str, result.findings)) == []


# --- Sitters are stopped and started --------------------------------------------------------------------------------


async def test_the_sitter_of_the_primary_is_stopped_and_started(stage: Stage) -> None:
    """The sync takes over, the async becomes the sync; the old primary is deposed and comes back."""
    before = await stage.state()
    old = await stage.primary()
    await stage.stop_sitter(old)
    state = await stage.generation(before.generation + 1)
    assert before.sync is not None
    assert state.primary.id == before.sync.id
    assert state.sync is not None
    assert state.sync.id == before.asyncs[0].id
    assert old.id in [peer.id for peer in state.deposed]
    await stage.writable()
    await stage.start_sitter(old)
    await stage.deposed_or_back(old)


async def test_the_sitter_of_the_sync_is_stopped_and_started(stage: Stage) -> None:
    """The async takes its place; it comes back as the async."""
    before = await stage.state()
    old, successor = await stage.sync(), await stage.first_async()
    await stage.stop_sitter(old)
    state = await stage.generation(before.generation + 1)
    assert state.primary.id == before.primary.id
    assert stage.of(state.sync) is successor
    await stage.writable()
    await stage.start_sitter(old)
    await stage.complete()
    assert await stage.first_async() is old


async def test_the_sitter_of_the_async_is_stopped_and_started(stage: Stage) -> None:
    """It leaves and comes back; nobody else notices."""
    before, gone = await stage.state(), await stage.first_async()
    async with stage.no_interruption():
        await stage.stop_sitter(gone)
        await stage.until(lambda seen: seen.state and not seen.state.asyncs, "the async to leave the chain")
        await stage.start_sitter(gone)
        await stage.complete()
    after = await stage.state()
    assert (after.generation, after.primary.id) == (before.generation, before.primary.id)


async def test_the_same_peer_goes_round_all_roles_twice(stage: Stage) -> None:
    """Each time the primary fails, everybody moves up; six failures bring each peer round twice."""
    held: list[str] = []
    for _ in range(6):
        before = await stage.state()
        held.append(before.primary.id)
        old = await stage.primary()
        await stage.stop_sitter(old)
        await stage.generation(before.generation + 1)
        await stage.start_sitter(old)
        await stage.complete()
    assert held[:3] == held[3:]
    assert len(set(held)) == 3


async def test_a_fourth_peer_is_added_rises_and_is_removed_for_good(stage: Stage) -> None:
    """It joins as the last async, becomes primary by successive failures, dies for good, and is reaped."""
    fourth = stage.lab.peers[3]
    await stage.boot(fourth)
    stage.lab.members = 4
    await stage.complete()
    assert stage.of((await stage.state()).asyncs[-1]) is fourth
    for _ in range(3):
        before, old = await stage.state(), await stage.primary()
        await stage.stop_sitter(old)
        await stage.generation(before.generation + 1)
        await stage.start_sitter(old)
        await stage.complete()
    assert await stage.primary() is fourth
    before = await stage.state()
    await stage.crash(fourth)
    stage.lab.members = 3
    state = await stage.generation(before.generation + 1)
    assert fourth.id in [peer.id for peer in state.deposed]
    await stage.reap(fourth)
    await stage.complete()
    assert fourth.id not in [peer.id for peer in (*(await stage.state()).assigned, *(await stage.state()).deposed)]


# --- Partitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["primary", "sync", "async"])
async def test_a_short_partition_changes_nothing(stage: Stage, role: str) -> None:
    peer = await stage.by_role(role)
    async with stage.no_change():
        async with stage.cut_off(peer):
            await asyncio.sleep(SHORT)
        await stage.writable()
        await stage.complete()


async def test_a_primary_that_was_cut_off_for_long_finds_itself_deposed(stage: Stage) -> None:
    """The same process finds it: it was not restarted."""
    before, old = await stage.state(), await stage.primary()
    process = await stage.begins(old)
    async with stage.cut_off(old):
        state = await stage.generation(before.generation + 1)
        assert old.id in [peer.id for peer in state.deposed]
        await stage.writable()
    await stage.deposed_or_back_by_itself(old, process)


async def test_a_sync_that_was_cut_off_for_long_is_replaced(stage: Stage) -> None:
    before, old = await stage.state(), await stage.sync()
    process = await stage.begins(old)
    async with stage.cut_off(old):
        state = await stage.generation(before.generation + 1)
        assert state.primary.id == before.primary.id
        await stage.writable()
    await stage.complete()
    assert await stage.first_async() is old
    assert await stage.begins(old) == process


async def test_an_async_that_was_cut_off_for_long_leaves_and_comes_back(stage: Stage) -> None:
    before, peer = await stage.state(), await stage.first_async()
    async with stage.cut_off(peer):
        await stage.until(lambda seen: seen.state and not seen.state.asyncs, "the async to leave the chain")
    await stage.complete()
    assert (await stage.state()).generation == before.generation


# --- Deaths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["primary", "sync", "async"])
@pytest.mark.parametrize("what", ["sitter", "postmaster"])
async def test_what_is_killed_and_back_in_time_changes_no_role(stage: Stage, role: str, what: str) -> None:
    """A restart below the session timeout, where death is not believed. (The async may leave the list for a moment.)"""
    before, peer = await stage.state(), await stage.by_role(role)
    unchanged = contextlib.nullcontext() if role == "async" else stage.no_change()
    async with stage.death_not_believed(), unchanged:
        await (stage.kill_sitter(peer) if what == "sitter" else stage.kill_postmaster(peer))
        if await stage.answers(peer) > SESSION - 2.0:
            pytest.skip("this machine is too busy to start a sitter within a session's timeout")
        await stage.complete()
        await stage.writable()
    after = await stage.state()
    assert after.generation == before.generation
    assert [each.id for each in after.assigned] == [each.id for each in before.assigned]


@pytest.mark.parametrize("role", ["primary", "sync"])
async def test_a_sitter_that_is_killed_is_seen_dead(stage: Stage, role: str) -> None:
    """Its PostgreSQL dies with it. The other of primary and sync evicts it at once, and goes on without it: long before
    its session ends.
    """
    before, peer = await stage.state(), await stage.by_role(role)
    other = await stage.by_role("sync" if role == "primary" else "primary")
    evicted = stage.seen_dead(other)
    await stage.kill_sitter(peer)
    killed = time.monotonic()
    state = await stage.generation(before.generation + 1)
    assert time.monotonic() - killed < SESSION / 2
    assert state.primary.id == other.id
    assert stage.seen_dead(other) == evicted + 1
    await stage.writable()
    await stage.complete()
    assert await stage.first_async() is peer


async def test_a_postmaster_that_is_killed_is_not_a_dead_peer(stage: Stage) -> None:
    """Its sitter answers, and starts it again."""
    async with stage.no_change():
        await stage.kill_postmaster(await stage.primary())
        await stage.writable()
        await stage.complete()


@pytest.mark.parametrize("who", ["primary", "sync", "both", "primary-to-all", "sync-to-all"])
async def test_a_firewall_that_refuses_costs_one_needless_takeover_at_most(stage: Stage, who: str) -> None:
    """What looks like death is none. Nobody is evicted twice, and the shard is as before when it is over.

    A primary that no peer reaches lives, and is present, but nobody can confirm a commit to it: it makes way.
    """
    began, before = time.monotonic(), await stage.state()
    primary, sync = stage.lab.node(await stage.primary()), stage.lab.node(await stage.sync())
    async_ = stage.lab.node(await stage.first_async())
    pairs = {
        "primary": [(sync, primary)],
        "sync": [(primary, sync)],
        "both": between([primary], [sync]),
        "primary-to-all": [(sync, primary), (async_, primary)],
        "sync-to-all": [(primary, sync), (async_, sync)],
    }
    async with stage.refused(pairs[who]):
        await asyncio.sleep(2 * SESSION)
        await stage.writable()
    await stage.complete()
    await stage.writable()
    assert max(stage.evictions(began).values(), default=0) <= 1
    assert (await stage.state()).generation <= before.generation + 2  # one for the eviction, one for a link that is cut


@pytest.mark.parametrize("role", ["primary", "sync", "async"])
async def test_a_peer_crashes_and_boots(stage: Stage, role: str) -> None:
    before, peer = await stage.state(), await stage.by_role(role)
    await stage.crash(peer)
    if role == "async":
        await stage.until(lambda seen: seen.state and not seen.state.asyncs, "the async to leave the chain")
    else:
        await stage.generation(before.generation + 1)
    await stage.writable()
    await stage.boot(peer)
    await stage.complete()
    assert await stage.first_async() is peer


# --- ZooKeeper ------------------------------------------------------------------------------------------------------


async def test_the_leader_of_zookeeper_is_killed_again_and_again(stage: Stage) -> None:
    """The shard stays up: no new generation, and the primary goes on writing."""
    before = await stage.state()
    async with stage.no_interruption():
        for _ in range(3):
            leader = await stage.leader()
            await stage.zookeeper(up=False, nodes=(leader,))
            await stage.leader()
            await stage.zookeeper(up=True, nodes=(leader,))
            await stage.leader()
    await stage.complete()
    assert (await stage.state()).generation == before.generation


async def test_all_of_zookeeper_goes_down_and_comes_up(stage: Stage) -> None:
    """A primary whose sync streams goes on."""
    before = await stage.state()
    async with stage.no_interruption():
        await stage.zookeeper(up=False)
        await asyncio.sleep(2 * SESSION)
    await stage.writable()
    await stage.zookeeper(up=True)
    await stage.complete()
    assert (await stage.state()).generation == before.generation


async def test_zookeeper_is_down_the_primary_stops_and_two_of_three_servers_come_up(stage: Stage) -> None:
    """The sync takes over; the old primary is deposed."""
    before, old = await stage.state(), await stage.primary()
    await stage.zookeeper(up=False)
    await stage.crash(old)
    await stage.zookeeper(up=True, nodes=("zk1", "zk2"))
    state = await stage.generation(before.generation + 1)
    assert old.id in [peer.id for peer in state.deposed]
    await stage.writable()
    await stage.zookeeper(up=True, nodes=("zk3",))
    await stage.boot(old)
    await stage.complete()


@pytest.mark.parametrize("order", list(itertools.permutations(("primary", "sync", "async"))))
async def test_everything_off_at_once_and_on_in_any_order(stage: Stage, order: tuple[str, ...]) -> None:
    """Writes are taken again; nothing is lost, whoever comes first."""
    peers = [await stage.by_role(role) for role in order]
    await stage.crash(*peers)
    await stage.zookeeper(up=False)
    await stage.zookeeper(up=True)
    for peer in peers:
        await stage.boot(peer)
        await asyncio.sleep(2.0)
    await stage.writable()
    await stage.complete()


async def test_everything_off_at_once_and_on_with_zookeeper_last(stage: Stage) -> None:
    peers = [await stage.by_role(role) for role in ("sync", "async", "primary")]
    await stage.zookeeper(up=False)
    await stage.crash(*peers)
    for peer in peers:
        await stage.boot(peer)
    await asyncio.sleep(SHORT)
    await stage.zookeeper(up=True)
    await stage.writable()
    await stage.complete()

"""Promise 3: a peer never follows an upstream it has diverged from, and what is not proven is not taken for proof."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from backupserver.main import serve
from manatee.cluster import Comparison
from manatee.lsn import Lsn
from sitter.postgres import compare, controldata, initdb, queries, wal_end
from sitter.postgres.compare import Log, Standing, judge
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from sitter.postgres.errors import CompareFailed
from sitter.postgres.promote import promote
from sitter.postgres.wal_end import parse_history
from tests.postgres.local import Machines, Node, until

LOG = structlog.get_logger()


@contextlib.asynccontextmanager
async def backup_servers(*nodes: Node) -> AsyncIterator[None]:
    """The real backup server of each node."""
    stop = asyncio.Event()
    for node in nodes:
        node.settings.backup.token_file.write_text("secret\n")
        node.settings.backup.token_file.chmod(0o600)
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(serve(node.settings, LOG, stop))
        try:
            yield
        finally:
            stop.set()


async def compared(node: Node, upstream: Node) -> Standing:
    """The comparison, once the upstream's backup server listens."""
    node.settings.backup.token_file.write_text("secret\n")
    async with aiohttp.ClientSession() as http:
        async with asyncio.timeout(30):
            while True:
                try:
                    return await compare.compare(node.settings, upstream.settings.identity, http)
                except CompareFailed as error:
                    if "Cannot connect" not in str(error):
                        raise
                    await asyncio.sleep(0.05)


async def work(node: Node, rows: int = 300) -> Lsn:
    await node.sql("create table if not exists t (i int)")
    await node.sql(f"insert into t select generate_series(1, {rows})")
    return Lsn.parse(await node.value("select pg_current_wal_flush_lsn()"))


async def replayed(node: Node, mark: Lsn) -> None:
    async def there() -> bool:
        return ((await queries.facts(node.settings)).replay or 0) >= mark

    await until(there)


async def take_over(node: Node) -> None:
    await node.server.configure(Replication(ALONE, read_only=False))
    await promote(node.settings, LOG)


async def test_a_standby_is_a_prefix_running_or_stopped(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    async with backup_servers(primary):
        mark = await work(primary)
        await replayed(standby, mark)
        found = await compared(standby, primary)
        assert found.answer is Comparison.PREFIX
        assert found.upstream_flush >= mark
        assert found.timeline == 1
        await standby.crash()
        mark = await work(primary)
        found = await compared(standby, primary)
        assert found.answer is Comparison.PREFIX
        assert found.upstream_flush >= mark


async def test_another_database(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    stranger = machines.empty()

    initdb.adopt(stranger.settings, await initdb.initialize(stranger.settings, LOG, timeout=60))
    found = await compared(stranger, primary)
    assert found.answer is Comparison.DIVERGED
    assert "another database" in found.reason


async def test_an_old_primary_with_a_commit_that_nobody_else_has_diverged(machines: Machines) -> None:
    old = machines.initialized()
    await old.start_primary()
    new = await machines.standby_of(old)
    third = await machines.standby_of(old)
    await replayed(new, await work(old))
    await new.server.configure(Replication(NOBODY, read_only=True))
    await new.receives_nothing()
    await replayed(third, await work(old))
    await old.crash()
    await take_over(new)
    fork = wal_end.history(new.data_dir, 2)[-1].begin
    await work(new)
    async with backup_servers(new):
        found = await compared(old, new)
        assert found.answer is Comparison.DIVERGED
        assert f"at {fork}" in found.reason
        # A standby that got the same commit is no better, running or not.
        assert (await compared(third, new)).answer is Comparison.DIVERGED


async def test_an_old_primary_that_has_nothing_more_is_a_prefix(machines: Machines) -> None:
    """Which pg_rewind calls no rewind required, and rightly: it follows at once."""
    old = machines.initialized()
    await old.start_primary()
    new = await machines.standby_of(old)
    await work(old)
    await old.postmaster.stop("fast", timeout=10)
    end = await wal_end.find(old.settings, await controldata.read(old.settings), version=old.version)
    await replayed(new, end.lsn)
    await take_over(new)
    mark = await work(new)
    async with backup_servers(new):
        found = await compared(old, new)
    assert found.answer is Comparison.PREFIX, found
    assert (found.timeline, found.upstream_flush >= mark) == (2, True)
    await old.start_standby(new)
    await replayed(old, mark)


async def test_two_promotions_to_the_same_timeline(machines: Machines) -> None:
    """The same number and the same history, but other bytes: only the digest knows."""
    primary = machines.initialized()
    await primary.start_primary()
    one = await machines.standby_of(primary)
    other = await machines.standby_of(primary)
    mark = await work(primary)
    await primary.postmaster.stop("fast", timeout=10)
    end = await wal_end.find(primary.settings, await controldata.read(primary.settings), version=primary.version)
    for node in (one, other):
        await replayed(node, max(mark, end.lsn))
        await take_over(node)
    await one.sql("insert into t values (-1)")
    await work(other, 2000)
    await one.sql("checkpoint")
    await one.sql("insert into t values (-2)")
    await one.crash()
    histories = {node.data_dir.joinpath("pg_wal", "00000002.history").read_text() for node in (one, other)}
    assert len(histories) == 1
    async with backup_servers(other):
        found = await compared(one, other)
    assert found.answer is Comparison.DIVERGED
    assert "differ on timeline 2, between" in found.reason


async def test_ahead_of_a_standby_that_lags(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    lagging = await machines.standby_of(primary)
    ours = await machines.standby_of(primary)
    await replayed(lagging, await work(primary))
    await lagging.server.configure(Replication(NOBODY, read_only=True))
    behind = (await queries.facts(lagging.settings)).flush
    mark = await work(primary)
    await replayed(ours, mark)
    async with backup_servers(lagging):
        found = await compared(ours, lagging)
        assert found.answer is Comparison.AHEAD
        assert found.upstream_flush < mark
        assert behind <= found.upstream_flush
        # On a newer timeline that the upstream has not heard of, it is the same.
        await primary.crash()
        await take_over(ours)
        await work(ours)
        await ours.crash()
        assert (await compared(ours, lagging)).answer is Comparison.AHEAD
        # Once the upstream is back on our side it holds all of ours.
        await ours.start_primary()
        link = lagging.follows(ours)
        await lagging.server.configure(link)
        await replayed(lagging, (await queries.facts(ours.settings)).flush)
        await ours.crash()
        found = await compared(ours, lagging)
        assert (found.answer, found.timeline) == (Comparison.PREFIX, 2), found


async def test_an_upstream_that_is_a_standby_counts_what_it_has_received(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    upstream = await machines.standby_of(primary)
    ours = await machines.standby_of(upstream)
    await upstream.sql("select pg_wal_replay_pause()")
    mark = await work(primary)
    await replayed(ours, mark)
    async with backup_servers(upstream):
        found = await compared(ours, upstream)
    assert found.answer is Comparison.PREFIX, found
    assert found.upstream_flush >= mark


async def test_what_the_upstream_no_longer_has_is_not_proven(machines: Machines) -> None:
    primary = machines.initialized()
    base = primary.settings.postgres.config_file
    assert base is not None
    with base.open("a") as lines:
        lines.write("wal_keep_size = 0\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n")
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    await replayed(standby, await work(primary))
    await standby.crash()
    for _ in range(4):
        await work(primary)
        await primary.sql("select pg_switch_wal()")
        await primary.sql("checkpoint")
    async with backup_servers(primary):
        found = await compared(standby, primary)
    assert found.answer is None
    assert "does not hold" in found.reason


async def test_who_cannot_be_asked_is_named(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    standby.settings.backup.token_file.write_text("secret")
    identity = primary.settings.identity
    async with aiohttp.ClientSession() as http:
        with pytest.raises(CompareFailed, match="backup server of node-0 cannot be asked"):
            await compare.compare(standby.settings, identity, http)
        async with backup_servers(primary):
            await compared(standby, primary)
            standby.settings.backup.token_file.write_text("wrong")
            with pytest.raises(CompareFailed, match="answers 401"):
                await compare.compare(standby.settings, identity, http)
        await primary.crash()
        with pytest.raises(CompareFailed, match="node-0 cannot be asked"):
            await compare.compare(standby.settings, identity, http)


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[int], list[int], Log, Log]:
    """Two logs out of a tree of promotions: for each, the timeline that wrote each byte, and what is said of it."""
    written: dict[int, list[int]] = {1: [1] * draw(st.integers(1, 9))}
    histories, begins = {1: ""}, {1: 1}
    for timeline in range(2, draw(st.integers(2, 6))):
        parent = draw(st.sampled_from(sorted(written)))
        begin = draw(st.integers(begins[parent], len(written[parent])))
        histories[timeline] = f"{histories[parent]}{parent}\t0/{begin:X}\tx\n"
        begins[timeline] = begin
        written[timeline] = written[parent][:begin] + [timeline] * draw(st.integers(0, 6))
    sides: list[tuple[list[int], Log]] = []
    for _ in range(2):
        timeline = draw(st.sampled_from(sorted(written)))
        stretches = parse_history(timeline, histories[timeline])
        end = draw(st.integers(int(stretches[-1].begin), len(written[timeline])))
        sides.append((written[timeline][:end], Log("1", stretches, Lsn(end))))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


@given(two_logs())
def test_a_log_is_a_prefix_exactly_if_its_bytes_are(logs: tuple[list[int], list[int], Log, Log]) -> None:
    ours, theirs, our_log, their_log = logs
    answer = judge(our_log, their_log).answer
    if theirs[: len(ours)] == ours:
        assert answer is Comparison.PREFIX
    elif ours[: len(theirs)] == theirs:
        assert answer is Comparison.AHEAD
    else:
        assert answer is Comparison.DIVERGED


def log(history: str, end: str, identifier: str = "1") -> Log:
    """A log from a line such as `1 0/3000000 2`: timelines and where each ends."""
    words = history.split()
    content = "\n".join(f"{timeline}\t{end}\tx" for timeline, end in zip(words[:-1:2], words[1::2], strict=True))
    return Log(identifier, parse_history(int(words[-1]), content), Lsn.parse(end))


@pytest.mark.parametrize(
    ("ours", "theirs", "answer"),
    [
        (log("1", "0/100"), log("1", "0/100"), Comparison.PREFIX),
        (log("1", "0/101"), log("1", "0/100"), Comparison.AHEAD),
        (log("1", "0/100"), log("1 0/100 2", "0/100"), Comparison.PREFIX),
        (log("1", "0/101"), log("1 0/100 2", "0/200"), Comparison.DIVERGED),
        (log("1", "0/101"), log("1 0/100 2", "0/100"), Comparison.AHEAD),
        (log("1 0/100 2", "0/200"), log("1", "0/100"), Comparison.AHEAD),
        (log("1 0/100 2", "0/200"), log("1", "0/101"), Comparison.DIVERGED),
        (log("1 0/100 2", "0/100"), log("1", "0/101"), Comparison.PREFIX),
        (log("1 0/100 2", "0/200"), log("1 0/100 3", "0/200"), Comparison.DIVERGED),
        (log("1 0/100 2", "0/200"), log("1 0/110 2", "0/200"), Comparison.DIVERGED),
        (log("1 0/100 2", "0/200"), log("1 0/100 2 0/180 3", "0/300"), Comparison.DIVERGED),
        (log("1 0/100 2", "0/180"), log("1 0/100 2 0/180 3", "0/300"), Comparison.PREFIX),
        (log("1 0/100 2 0/180 4", "0/180"), log("1 0/100 2 0/180 3", "0/300"), Comparison.PREFIX),
        (log("1", "0/100"), log("1", "0/100", "2"), Comparison.DIVERGED),
    ],
)
def test_histories_are_judged_by_where_they_part(ours: Log, theirs: Log, answer: Comparison) -> None:
    assert judge(ours, theirs).answer is answer

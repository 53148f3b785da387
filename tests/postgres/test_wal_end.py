"""The end of the last complete record, judged by PostgreSQL itself: where its recovery ends."""

from __future__ import annotations

import shutil
import time

import pytest

from manatee.lsn import Lsn
from sitter.postgres import controldata, wal_end
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from sitter.postgres.errors import BadWal, ToolFailed
from sitter.postgres.wal_end import WalEnd
from tests.postgres.local import Machines, Node, as_postgres, give, until

SEGMENT = 16 << 20


async def found(node: Node, *, known: Lsn | None = None, version: int | None = None) -> WalEnd:
    control = await controldata.read(node.settings)
    return await wal_end.find(node.settings, control, version=version or node.version, known=known)


async def recovered(node: Node) -> Lsn:
    """Where recovery ends with nothing but what is on disk. The node runs as a standby of nobody after this."""
    await node.start(Replication(NOBODY, read_only=True, sealed=True), standby=True)
    await node.open()
    end: list[Lsn] = []

    async def settled() -> bool:
        rows = await node.sql("select wait_event from pg_stat_activity where backend_type = 'startup'")
        end[:] = [Lsn.parse(await node.value("select pg_last_wal_replay_lsn()"))]
        return rows == [("RecoveryRetrieveRetryInterval",)]

    await until(settled)
    return end[0]


def put(node: Node, timeline: int, position: Lsn, content: bytes) -> None:
    """Write into the WAL on disk."""
    size = 16 << 20
    name = f"{timeline:08X}{position // size // 256:08X}{position // size % 256:08X}"
    with (node.data_dir / "pg_wal" / name).open("r+b") as file:
        file.seek(position % size)
        file.write(content)


def get(node: Node, timeline: int, position: Lsn, length: int) -> bytes:
    size = 16 << 20
    name = f"{timeline:08X}{position // size // 256:08X}{position // size % 256:08X}"
    return (node.data_dir / "pg_wal" / name).read_bytes()[position % size : position % size + length]


WORK = (
    "create table if not exists t (v text); insert into t select repeat('x', i % 3000) from generate_series(1, 5000) i"
)


async def test_after_a_crash_it_is_where_recovery_ends(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    await node.sql(WORK)
    await node.crash()
    end = await found(node)
    control = await controldata.read(node.settings)
    assert end.lsn - control.checkpoint > 1 << 20
    assert await found(node, version=14) == end, "versions whose pg_waldump does not say where it ended"
    assert await recovered(node) == end.lsn
    assert await found(node, known=end.lsn) == end


async def test_after_a_clean_stop(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    await node.sql("select pg_logical_emit_message(true, '', 'x')")
    await node.postmaster.stop("fast", timeout=10)
    end = await found(node)
    control = await controldata.read(node.settings)
    assert control.cleanly_stopped
    assert end.lsn > control.checkpoint == control.redo
    assert await recovered(node) == end.lsn


async def test_segments_that_are_allocated_and_not_written_yet(machines: Machines) -> None:
    """PostgreSQL makes segments ahead of time, all zeros; a directory lists its files in any order."""
    node = machines.initialized()
    await node.start_primary()
    await node.sql(WORK)
    await node.crash()
    for ahead in range(200, 256):
        with (node.data_dir / "pg_wal" / f"{1:08X}{0:08X}{ahead:08X}").open("wb") as file:
            file.truncate(16 << 20)
    end = await found(node)
    assert end.lsn > (await controldata.read(node.settings)).checkpoint


@pytest.mark.parametrize("size", [1, 64])
async def test_segments_of_other_sizes(machines: Machines, size: int) -> None:
    node = machines.empty()
    options = ("-U", "postgres", "-E", "UTF8", "--locale=C", "-N", f"--wal-segsize={size}")
    as_postgres(machines.bin_dir / "initdb", "-D", node.data_dir, *options)
    assert node.settings.postgres.config_file
    node.settings.postgres.config_file.write_text("shared_buffers = 16MB\nmin_wal_size = 160MB\n")
    await node.start_primary()
    await node.sql(WORK)
    await node.crash()
    end = await found(node)
    assert (await controldata.read(node.settings)).wal_segment_size == size << 20
    assert end.lsn // (1 << 20) > 2
    assert await found(node, version=14) == end
    assert await recovered(node) == end.lsn


async def test_a_switch_to_the_next_segment_ends_the_one_before(machines: Machines) -> None:
    """The next segment need not exist yet, and pg_waldump would wait five seconds for it."""
    node = machines.initialized()
    await node.start_primary()
    await node.sql("select pg_logical_emit_message(true, '', 'x')")
    await node.sql("select pg_switch_wal()")
    await node.crash()
    begun = time.monotonic()
    end = await found(node)
    assert time.monotonic() - begun < 2
    if end.lsn % (16 << 20):  # the background writer logs a snapshot now and then
        pytest.skip("something was logged after the switch")
    assert await found(node, version=14) == end
    for segment in sorted((node.data_dir / "pg_wal").glob("0000*"))[1:]:
        segment.unlink()
    begun = time.monotonic()
    assert await found(node) == end
    assert time.monotonic() - begun < 2
    assert await found(node, known=end.lsn) == end


async def test_a_stale_record_behind_the_end_is_none(machines: Machines) -> None:
    """A recycled segment has whole records behind the end, which pass every check but that of the chain."""
    node = machines.initialized()
    await node.start_primary()
    await node.sql("select pg_logical_emit_message(false, 'stale', 'x')")
    stale = Lsn.parse(await node.value("select pg_current_wal_insert_lsn()"))
    await node.sql("select pg_logical_emit_message(false, 'stale', 'xy')")
    after = Lsn.parse(await node.value("select pg_current_wal_insert_lsn()"))
    await node.sql("select pg_logical_emit_message(true, '', repeat('x', 8100)) from generate_series(1, 5)")
    last = Lsn.parse(await node.value("select pg_logical_emit_message(true, '', repeat('x', 8100))"))
    await node.crash()
    record = get(node, 1, stale, after - stale)
    put(node, 1, last, bytes(8192 - last % 8192))
    put(node, 1, last, record)
    # It is the first record of its page, so that whoever begins to read there takes it.
    as_postgres(machines.bin_dir / "pg_waldump", "-p", node.data_dir / "pg_wal", "-s", str(last), "-n", "1")
    end = await found(node)
    assert end.lsn == last
    assert await found(node, known=end.lsn) == end
    assert await found(node, version=14) == end
    assert await recovered(node) == end.lsn


async def test_a_half_written_record_is_none(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    await node.sql("select pg_logical_emit_message(true, '', 'x')")
    before = Lsn.parse(await node.value("select pg_current_wal_insert_lsn()"))
    await node.sql("select pg_logical_emit_message(true, '', repeat('x', 3000000))")
    await node.crash()
    cut = Lsn((before + 1500000) // 8192 * 8192)
    put(node, 1, cut, bytes(8192 * 400))
    end = await found(node)
    assert end.lsn < cut
    assert await recovered(node) == end.lsn


async def test_what_cannot_be_read_is_no_end(machines: Machines) -> None:
    """pg_waldump has one exit status for all of its complaints; what lies behind it may have been acknowledged."""
    node = machines.initialized()
    await node.start_primary()
    await node.sql(WORK)
    await node.sql("select pg_switch_wal()")
    await node.sql(WORK)
    await node.crash()
    end = await found(node)
    control = await controldata.read(node.settings)
    assert end.lsn // SEGMENT > control.redo // SEGMENT
    last = node.data_dir / "pg_wal" / f"{1:08X}{0:08X}{end.lsn // SEGMENT:08X}"
    hidden = last.rename(last.with_name("hidden"))
    last.mkdir()  # it can be opened, and not be read: so even for root
    for version in (node.version, 14):
        with pytest.raises(ToolFailed, match="could not"):
            await found(node, version=version)
    last.rmdir()
    hidden.rename(last)
    assert await found(node) == end


@pytest.mark.parametrize("content", [bytes(SEGMENT), b"\xab" * SEGMENT], ids=["never written", "something else"])
async def test_whatever_is_behind_the_end(machines: Machines, content: bytes) -> None:
    """Recovery ends before a segment that holds no log."""
    node = machines.initialized()
    await node.start_primary()
    await node.sql(WORK)
    await node.sql("select pg_switch_wal()")
    await node.crash()
    control = await controldata.read(node.settings)
    ends = Lsn((control.redo // SEGMENT + 1) * SEGMENT)
    after = node.data_dir / "pg_wal" / f"{1:08X}{0:08X}{ends // SEGMENT:08X}"
    after.write_bytes(content)
    give(after)
    for version in (node.version, 14):
        assert await found(node, version=version) == WalEnd(1, ends)
        assert await found(node, version=version, known=ends) == WalEnd(1, ends)


@pytest.mark.parametrize(
    ("complaint", "ends"),
    [
        ("fatal: error in WAL record at 0/1500708: invalid record length at 0/1500780: wanted 24, got 0", True),
        ("error: error in WAL record at 0/16EF418: record length 1718381931 at 0/16EF490 too long", True),
        ("error: could not find a valid record after 0/2000000", True),
        ("error: could not find a valid record after 0/02000000: unexpected pageaddr", True),
        (
            f'fatal: {(size := "WAL segment size must be a power of two between 1 MB and 1 GB")}, but the WAL file "0"',
            True,
        ),
        (f"detail: The {size}.", True),
        ("fatal: could not read from file 000000010000000000000001, offset 5242880: read 0 of 8192", False),
        ('error: could not read file "000000010000000000000001": read 100 of 8192', False),
        ("error: could not read from file 000000010000000000000001, offset 5242880: Input/output error", False),
        ('error: could not read file "000000010000000000000001": Is a directory', False),
        ('error: could not open file "000000010000000000000001": Too many open files', False),
        ('error: could not find file "000000010000000000000002": No such file or directory', False),
        ('error: could not locate WAL file "000000010000000000000002"', False),
        ("error: out of memory while allocating a WAL reading processor", False),
        ("error: error in WAL record at 0/16EF418: out of memory while trying to decode a record of length 90", False),
        ("ended with status 1", False),
    ],
)
def test_the_words_for_the_end_in_all_versions(complaint: str, ends: bool) -> None:
    assert bool(wal_end._END_OF_LOG.search(complaint)) is ends


async def test_over_a_change_of_timeline(machines: Machines) -> None:
    """A standby whose last restartpoint lies on the old timeline and whose WAL goes on with the new one."""
    primary = machines.initialized()
    await primary.start_primary()
    sync = await machines.standby_of(primary)
    behind = await machines.standby_of(sync)
    await caught_up(behind, await work(primary))
    await primary.crash()
    await sync.server.configure(Replication(ALONE, read_only=False))
    await sync.sql("select pg_promote()")
    mark = await work(sync)
    await caught_up(behind, mark)
    await behind.crash()
    control = await controldata.read(behind.settings)
    end = await found(behind)
    assert control.timeline == 1
    assert end.timeline == 2
    assert end.lsn >= mark
    assert await found(behind, version=14) == end
    for stretch in wal_end.history(behind.data_dir, 2)[1:]:
        assert await found(behind, known=stretch.begin) == end
    assert await recovered(behind) == end.lsn


async def work(node: Node) -> Lsn:
    await node.sql(WORK)
    return Lsn.parse(await node.value("select pg_current_wal_flush_lsn()"))


async def caught_up(node: Node, mark: Lsn) -> None:
    async def replayed() -> bool:
        return Lsn.parse(await node.value("select pg_last_wal_replay_lsn()")) >= mark

    await until(replayed)


async def test_what_must_be_there_and_is_not(machines: Machines) -> None:
    node = machines.initialized()
    for segment in (node.data_dir / "pg_wal").glob("0000*"):
        segment.unlink()
    with pytest.raises(BadWal, match="before the latest checkpoint"):
        await found(node)
    shutil.rmtree(node.data_dir / "pg_wal")
    with pytest.raises(BadWal, match="cannot be read"):
        await found(node)


def test_histories() -> None:
    text = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000148\tbefore 2000-01-01 # comment\n"
    assert [(one.timeline, one.begin, one.end) for one in wal_end.parse_history(3, text)] == [
        (1, Lsn(0), Lsn.parse("0/3000000")),
        (2, Lsn.parse("0/3000000"), Lsn.parse("0/5000148")),
        (3, Lsn.parse("0/5000148"), None),
    ]
    assert [one.timeline for one in wal_end.parse_history(1, "")] == [1]
    with pytest.raises(BadWal, match="garbled"):
        wal_end.parse_history(2, "one 0/3000000")

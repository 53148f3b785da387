"""A standby that died before the first byte of a new timeline came is started again, whatever it left of it."""

from __future__ import annotations

import psutil
import pytest
import structlog

from manatee.lsn import Lsn
from sitter.postgres import blank, queries, wal_end
from sitter.postgres.blank import remove_blank
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from sitter.postgres.promote import promote
from tests.postgres.local import Machines, Node, give, until
from tests.postgres.test_compare import replayed, work

LOG = structlog.get_logger()
SEGMENT = 16 << 20


async def test_a_standby_starts_although_the_new_timelines_segment_is_blank(machines: Machines) -> None:
    primary = machines.initialized()
    await primary.start_primary()
    new = await machines.standby_of(primary)
    behind = await machines.standby_of(primary)
    await work(primary)
    await primary.sql("select pg_switch_wal()")
    await primary.sql("checkpoint")
    end = (await queries.facts(primary.settings)).flush
    await replayed(behind, end)
    await behind.server.configure(Replication(NOBODY, read_only=True))

    async def no_receiver() -> bool:
        return (await queries.facts(behind.settings)).receiver is None

    await until(no_receiver)
    await behind.crash()
    mark = await work(primary)
    await replayed(new, mark)
    await primary.crash()
    await new.server.configure(Replication(ALONE, read_only=False))
    await promote(new.settings, LOG)
    history = "00000002.history"
    content = (new.data_dir / "pg_wal" / history).read_bytes()
    begin = wal_end.history(new.data_dir, 2)[-1].begin
    segment = behind.data_dir / "pg_wal" / f"00000002{0:08X}{begin // SEGMENT:08X}"
    for path, text in ((behind.data_dir / "pg_wal" / history, content), (segment, bytes(SEGMENT))):
        path.write_bytes(text)
        path.chmod(0o600)
        give(path)
    await behind.start_standby(new)
    await replayed(behind, await work(new))


async def test_while_a_standby_runs_nothing_is_taken_from_it(machines: Machines) -> None:
    """Its receiver may be about to write to a segment that is still blank: SIGHUP must not cost what it writes."""
    primary = machines.initialized()
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    begin = (await queries.facts(primary.settings)).flush
    wal = standby.data_dir / "pg_wal"
    made = wal / f"00000002{0:08X}{begin // SEGMENT + 50:08X}"
    at = Lsn((begin // SEGMENT + 50) * SEGMENT + 96)
    for path, content in ((wal / "00000002.history", f"1\t{at}\tas if it were\n".encode()), (made, bytes(SEGMENT))):
        path.write_bytes(content)
        path.chmod(0o600)
        give(path)
    standby.server.stale.set()
    await standby.server.reread()
    assert standby.server.refused is None
    assert made.exists()


async def test_what_a_dead_sitter_left_running_is_ended_before_anything_is_taken_from_its_data(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that runs on may be about to write to the segment that is still blank."""
    before = machines.initialized()
    await before.start(Replication(NOBODY, read_only=True), standby=True)
    left = before.postmaster.pid
    assert left is not None
    alive: list[bool] = []
    process = psutil.Process(left)
    monkeypatch.setattr(blank, "remove_blank", lambda *_: alive.append(_runs(process)))
    after = Node(before.settings, before.version)
    await after.start(Replication(NOBODY, read_only=True), standby=True)
    assert alive == [False]
    await after.server.stop("immediate")


def test_what_was_written_stays(machines: Machines) -> None:
    node = machines.initialized()
    wal = node.data_dir / "pg_wal"
    (wal / "00000002.history").write_text("1\t0/2000060\tno recovery target specified\n")
    (wal / "000000020000000000000002").write_bytes(b"\x10" + bytes(100))
    (wal / "000000020000000000000003").write_bytes(bytes(100))
    before = {path.name for path in wal.iterdir()}
    remove_blank(node.data_dir, SEGMENT, LOG)
    assert {path.name for path in wal.iterdir()} == before


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

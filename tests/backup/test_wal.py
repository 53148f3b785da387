"""Equal logs have equal digests, whoever holds them and under whatever timeline; what is not held is never guessed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from demo.postgresql import Installation
from manatee.lsn import Lsn
from manatee.wal import WalMissing, digest, segment_size
from tests.backup.sandbox import Peer, Sandbox, until

MEGABYTE = 1 << 20


def standby_of(upstream: Peer, sandbox: Sandbox) -> Peer:
    """A standby made by the plain means."""
    standby = sandbox.peer(upstream.postgresql)
    command = [upstream.postgresql.bin_dir / "pg_basebackup", "-D", standby.data, "-X", "stream", "-c", "fast", "-N"]
    address = ["-h", upstream.ip, "-p", "5432", "-U", "postgres"]
    subprocess.run([*map(str, command), *address], check=True, cwd="/", **sandbox.as_user)
    return standby.follow(upstream)


def write(peer: Peer, megabytes: int) -> Lsn:
    """Put at least so much into the log, in segments of their own; its flushed end."""
    for _ in range(megabytes):
        peer.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1048576))")
    peer.sql("CREATE TABLE IF NOT EXISTS t (n int)")
    peer.sql("INSERT INTO t VALUES (1)")
    return peer.flushed()


def test_a_standby_holds_the_bytes_of_its_primary(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize()
    standby = standby_of(primary, sandbox)
    start = primary.flushed()
    end = write(primary, 40)
    until(lambda: standby.received(end))
    assert segment_size(primary.data) == segment_size(standby.data) == 16 * MEGABYTE
    assert digest(primary.data, 1, start, end) == digest(standby.data, 1, start, end)
    # Any range, however it lies across pages and segments; another range has another digest.
    for begin, stop in [
        (start + 1, end - 1),
        (start + 12345, start + 12346),
        (start + MEGABYTE, start + 17 * MEGABYTE),
    ]:
        assert digest(primary.data, 1, Lsn(begin), Lsn(stop)) == digest(standby.data, 1, Lsn(begin), Lsn(stop))
    assert digest(primary.data, 1, start, end) != digest(primary.data, 1, start, Lsn(end - 8))


def test_a_promotion_leaves_the_digests_of_what_was_before(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize()
    sync = standby_of(primary, sandbox)
    cascade = standby_of(sync, sandbox)
    start = primary.flushed()
    switch = write(primary, 20)
    until(lambda: sync.received(switch))
    until(lambda: primary.sql("SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication"))
    primary.stop()
    before = digest(primary.data, 1, start, switch)
    sync.sql("SELECT pg_promote()")
    end = write(sync, 20)
    until(lambda: cascade.received(end))
    # The old primary's log is a prefix, whichever timeline it is read on; the copy keeps the pages as they were.
    assert digest(sync.data, 1, start, switch) == before
    assert digest(sync.data, 2, start, switch) == before
    # Across the switch the two that share the history agree, and the old primary does not have it.
    tail = Lsn(switch - 4 * MEGABYTE)
    assert digest(sync.data, 2, tail, end) == digest(cascade.data, 2, tail, end)
    with pytest.raises(WalMissing, match="timeline 2 is not known here"):
        digest(primary.data, 2, tail, end)
    # The segment of the switch is held twice; either file will do for what was before it, none but the newer after.
    old, new = sorted((sync.data / "pg_wal").glob(f"*{_segment(sync.data, switch)}"))
    assert (old.name[:8], new.name[:8]) == ("00000001", "00000002")
    sync.stop()
    hidden = new.rename(new.with_name("hidden"))
    assert digest(sync.data, 2, start, switch) == before
    with pytest.raises(WalMissing, match=new.name):
        digest(sync.data, 2, tail, end)
    hidden.rename(new)
    old.unlink()  # as a recycled segment is
    assert digest(sync.data, 2, tail, end) == digest(cascade.data, 2, tail, end)


def test_the_rest_of_a_segment_after_a_switch_is_held(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize()
    standby = standby_of(primary, sandbox)
    start = write(primary, 1)
    primary.sql("SELECT pg_switch_wal()")
    end = write(primary, 1)
    assert end // segment_size(primary.data) > start // segment_size(primary.data)
    until(lambda: standby.received(end))
    assert digest(primary.data, 1, start, end) == digest(standby.data, 1, start, end)
    # The zeros at the end of a segment that is being written are not that.
    here = primary.data / "pg_wal" / f"00000001{_segment(primary.data, end)}"
    primary.stop(signal.SIGQUIT)
    with here.open("r+b") as file:
        file.truncate(end % segment_size(primary.data) - 4 * 8192)
        file.truncate(segment_size(primary.data))
    with pytest.raises(WalMissing, match="has not been written so far"):
        digest(primary.data, 1, start, end)


def test_two_promotions_of_one_number_have_different_digests(sandbox: Sandbox, any_postgresql: Installation) -> None:
    primary = sandbox.peer(any_postgresql).initialize()
    peers = [standby_of(primary, sandbox) for _ in range(2)]
    position = write(primary, 1)
    until(lambda: all(peer.received(position) for peer in peers))
    primary.stop()
    for peer in peers:
        peer.sql("SELECT pg_promote()")
        write(peer, 1)
    histories = [(peer.data / "pg_wal" / "00000002.history").read_text() for peer in peers]
    assert histories[0].split()[:2] == histories[1].split()[:2]
    end = min(peer.flushed() for peer in peers)
    assert digest(peers[0].data, 2, position, end) != digest(peers[1].data, 2, position, end)


def test_what_is_recycled_or_not_written_yet_is_missing(sandbox: Sandbox, postgresql: Installation) -> None:
    primary = sandbox.peer(postgresql).initialize(wal_keep_size=0, max_wal_size="32MB", min_wal_size="32MB")
    start = primary.flushed()
    early = write(primary, 1)
    assert digest(primary.data, 1, start, early)
    for _ in range(3):
        write(primary, 20)
        primary.sql("CHECKPOINT")
    end = write(primary, 1)
    with pytest.raises(WalMissing, match="there is no"):
        digest(primary.data, 1, start, early)
    # A file of an old segment that now bears a future number is there, and holds nothing of that future.
    future = Lsn(end - end % (16 * MEGABYTE) + 16 * MEGABYTE)
    assert (primary.data / "pg_wal" / f"00000001{_segment(primary.data, future)}").exists()
    with pytest.raises(WalMissing, match="has not been written so far"):
        digest(primary.data, 1, future, Lsn(future + 100))


def test_a_file_that_is_recycled_while_it_is_read_is_missing(
    sandbox: Sandbox, any_postgresql: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = sandbox.peer(any_postgresql).initialize()
    start = peer.flushed()
    end = write(peer, 1)
    peer.stop()
    segment = peer.data / "pg_wal" / f"00000001{_segment(peer.data, start)}"
    shutil.copyfile(segment, segment.with_name("0" * 23 + "1"))
    stat = Path.stat

    def recycled(path: Path) -> object:
        return stat(segment.with_name("0" * 23 + "1") if path == segment else path)

    monkeypatch.setattr(Path, "stat", recycled)
    with pytest.raises(WalMissing, match="recycled while it was read"):
        digest(peer.data, 1, start, end)


def test_nothing_here_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(WalMissing, match="no write-ahead log"):
        digest(tmp_path, 1, Lsn(0), Lsn(1))
    (tmp_path / "pg_wal").mkdir()
    with pytest.raises(WalMissing, match="no complete segment"):
        digest(tmp_path, 1, Lsn(0), Lsn(1))
    with pytest.raises(ValueError, match=re.escape("ends at 0/00000001, before it begins at 0/00000002")):
        digest(tmp_path, 1, Lsn(2), Lsn(1))


def _segment(data: Path, position: Lsn) -> str:
    number = position // segment_size(data)
    per_id = (1 << 32) // segment_size(data)
    return f"{number // per_id:08X}{number % per_id:08X}"

"""Why PostgreSQL is down is one word for an alarm; one that dies again and again is not taken for one that is up."""

from __future__ import annotations

import pytest

from sitter import failures
from sitter.failures import Failures
from sitter.postgres.causes import CAUSES, KILLED, OTHER, cause_of


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ('PANIC:  could not write to file "pg_wal/xlogtemp.41": No space left on device', "disk_full"),
        (
            'FATAL:  could not extend file "base/5/16388": No space left on device | LOG:  terminating any other',
            "disk_full",
        ),
        (
            'LOG:  syntax error in file "/etc/pg.conf" line 7 | FATAL:  configuration file "x" contains errors',
            "configuration",
        ),
        ('LOG:  unrecognized configuration parameter "max_conections" in file', "configuration"),
        ('FATAL:  could not open directory ".": Permission denied', "data_directory"),
        ('LOG:  skipping missing configuration file "/d/x.conf" | FATAL:  "/d": Permission denied', "data_directory"),
        ('FATAL:  data directory "/data" has invalid permissions', "data_directory"),
        ('PANIC:  could not read file "global/pg_control": Input/output error', "data_directory"),
        ("FATAL:  could not map anonymous shared memory: Cannot allocate memory", "memory"),
        ("FATAL:  could not create any TCP/IP sockets", "address"),
        ("LOG:  server process (PID 77) was terminated by signal 9: Killed", "backend_crashed"),
        ("it said nothing", OTHER),
    ],
)
def test_the_cause_is_found_in_what_was_said(said: str, cause: str) -> None:
    assert cause_of(said) == cause
    assert cause in CAUSES


def test_a_postmaster_that_was_killed_says_nothing() -> None:
    assert cause_of("LOG:  No space left on device, an hour ago", returncode=-9) == KILLED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("sitter.failures.time.monotonic", lambda: now[0])
    return now


def test_the_first_restart_comes_at_once_and_those_of_a_server_that_keeps_dying_ever_later(clock: list[float]) -> None:
    seen = Failures()
    pauses = []
    for _ in range(8):
        seen.failed("disk_full", "")
        pauses.append(seen.pause)
        seen.came_up()
        clock[0] += failures.AT_ONCE / 2
    assert pauses[0] == 0.0
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[-1] == failures.PAUSE_MAX


def test_times_down_add_up_until_it_has_been_up_for_long(clock: list[float]) -> None:
    """Or a primary on a full disk, which comes up and dies again, would never make way."""
    seen = Failures()
    for _ in range(3):
        seen.failed("disk_full", "")
        clock[0] += 2.0
        seen.came_up()
        assert seen.since is None
        clock[0] += 1.0
    seen.failed("disk_full", "")
    assert seen.since is not None
    assert clock[0] - seen.since == 6.0
    seen.came_up()
    clock[0] += failures.STEADY
    seen.failed("killed", "")
    assert seen.since == clock[0]


def test_a_server_that_keeps_dying_is_not_relied_on_while_it_is_up(clock: list[float]) -> None:
    """Or a sync on a full disk would be ready for a moment again and again, and never be replaced."""
    seen = Failures()
    for _ in range(failures.FLAPPING):
        assert not seen.flapping
        seen.failed("disk_full", "")
        clock[0] += 1.0
        seen.came_up()
    assert seen.flapping
    assert seen.lasting
    clock[0] += failures.STEADY
    assert not seen.flapping
    assert seen.lasting is None
    assert seen.counts == {"disk_full": failures.FLAPPING}

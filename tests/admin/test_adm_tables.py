"""What `manatee-adm` prints is what programs and people have read for years, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin import tables
from admin.observed import NOT_ASKED, Observed
from admin.problems import findings, problems
from manatee.cluster import ClusterState
from tests.admin.shapes import A, B, C, D, E, healthy, singleton, state, walsender

HEALTHY = """\
zookeeper:   10.65.68.9
cluster:     sdc
generation:  77 (B6/952E6978)
mode:        normal
freeze:      not frozen

ROLE     PEERNAME                             IP              
primary  6589d30f-5fe7-4e79-899e-c6b0f540b9c0 10.65.68.14     
sync     5e0a09bb-6f04-4ffe-aeb7-ac1cb23b93ed 10.65.68.51     
async    a7fdcdaa-1180-468f-bd28-730bdd17aca4 10.65.68.112    

ROLE     PEER     PG   REPL  SENT          FLUSH         REPLAY        LAG   
primary  6589d30f ok   sync  B7/20767698   B7/20767698   B7/20765CC0   -     
sync     5e0a09bb ok   async B7/20767698   B7/20767698   B7/20765CC0   0m03s 
async    a7fdcdaa ok   -     -             -             -             0m03s 
"""  # noqa: W291

SINGLETON_DOWN = """\
zookeeper:   10.65.68.9
cluster:     sdc
generation:  77 (B6/952E6978)
mode:        singleton (one-node-write)
freeze:      frozen since 2026-01-16T08:08:33.000Z
freeze info: manatee setup: one node write mode

ROLE     PEER     PG   REPL  SENT          FLUSH         REPLAY        LAG   
primary  6589d30f fail -     -             -             -             -     

error: cannot query postgres on primary
"""  # noqa: W291

TROUBLED = """\
zookeeper:   10.65.68.9
cluster:     sdc
generation:  77 (B6/952E6978)
mode:        normal
freeze:      not frozen

ROLE     PEER     PG   REPL  SENT          FLUSH         REPLAY        LAG   
primary  6589d30f fail -     -             -             -             -     
sync     5e0a09bb ok   async B7/20767698   B7/20767698   B7/20765CC0   0m03s 
async    a7fdcdaa ok   -     -             -             -             1441m05s
deposed  d0d0d0d0 fail -     -             -             -             -     

error: cannot query postgres on primary
error: peer "6589d30f": downstream replication peer not connected
warning: cluster has a deposed peer
"""  # noqa: W291

CATCHUP = 'peer "6589d30f": downstream replication not yet established (expected state "streaming", found "catchup")'


def shown(state_: ClusterState, seen: dict[str, Observed], *, verbose: bool = False) -> str:
    return tables.show("10.65.68.9", "sdc", state_, seen, problems(state_, seen), verbose=verbose)


def test_show_of_a_healthy_shard_is_byte_for_byte_what_the_design_shows() -> None:
    assert shown(state(), healthy(), verbose=True) == HEALTHY


def test_show_without_verbose_leaves_the_names_out() -> None:
    head, _, body = HEALTHY.partition("\n\n")
    assert shown(state(), healthy()) == head + "\n\n" + body.partition("\n\n")[2]


def test_show_of_a_frozen_singleton_that_is_down() -> None:
    assert shown(singleton(), {A.id: Observed(error="refused")}) == SINGLETON_DOWN


def test_show_of_a_shard_in_trouble_puts_errors_before_warnings_after_an_empty_line() -> None:
    seen = healthy() | {A.id: Observed(error="refused"), C.id: Observed(lag=86465.0), D.id: NOT_ASKED}
    assert shown(state(deposed=[D]), seen) == TROUBLED


@pytest.mark.parametrize(
    ("freeze", "lines"),
    [
        (True, ["freeze:      frozen since unknown", "freeze info: unknown"]),
        (False, ["freeze:      not frozen"]),
        (None, ["freeze:      not frozen"]),
        ({"date": "D", "reason": "two\nlines"}, ["freeze:      frozen since D", "freeze info: two lines"]),
    ],
)
def test_every_form_of_freeze_has_its_lines(freeze: object, lines: list[str]) -> None:
    assert tables.overview("z", "s", state(freeze=freeze)).splitlines()[4:] == lines


@pytest.mark.parametrize(
    ("chosen", "header", "row"),
    [
        (("role",), "ROLE    ", "sync    "),
        (("role", "peername"), "ROLE     PEERNAME                            ", f"sync     {B.zone_id}"),
        (("role", "zonename,ip"), "ROLE     PEERNAME                             IP              ", None),
        (("ip",), "IP              ", "10.65.68.51     "),
    ],
)
def test_columns_are_chosen_by_name_and_the_last_is_padded_too(
    chosen: tuple[str, ...], header: str, row: str | None
) -> None:
    selected = tables.columns(chosen, tables.PEERS, with_postgres=False)
    lines = tables.table(selected, tables.peer_rows(state(), role="sync")).splitlines()
    assert lines[0] == header
    assert len(lines) == 2
    assert row is None or lines[1] == row
    assert tables.table(selected, tables.peer_rows(state(), role="sync"), header=False).splitlines() == lines[1:]


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        (("badcolumn",), 'unsupported column: "badcolumn"'),
        (("pg-sent",), 'column not available with this subcommand: "SENT"'),
        ((",",), "no columns selected"),
    ],
)
def test_a_column_that_is_not_there_is_named(chosen: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(tables.NoSuchColumn) as error:
        tables.columns(chosen, tables.PEERS, with_postgres=False)
    assert str(error.value) == complaint


@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_is_minutes_and_two_digits_of_seconds(seconds: float) -> None:
    minutes, rest = tables.duration(seconds).removesuffix("s").split("m")
    assert int(minutes) * 60 + int(rest) == int(seconds)
    assert len(rest) == 2
    assert int(rest) < 60


def test_five_peers_each_show_the_replication_from_them() -> None:
    seen = healthy() | {
        C.id: Observed(walsenders=(walsender(D, "async"),), lag=342.0),
        D.id: Observed(walsenders=(walsender(E, "async"),), lag=342.0),
        E.id: Observed(lag=None),
    }
    rows = tables.peer_rows(state(**{"async": [C, D, E]}), seen)
    assert [row.get("pg-repl", "-") for row in rows] == ["sync", "async", "async", "async", "-"]
    assert [row["pg-lag"] for row in rows] == ["-", "0m03s", "5m42s", "5m42s", "-"]
    assert problems(state(**{"async": [C, D, E]}), seen) == []


# --- Problems -----------------------------------------------------------------------------------------------------


def lines(state_: ClusterState, seen: dict[str, Observed]) -> list[str]:
    return [str(problem) for problem in problems(state_, seen)]


def test_a_healthy_shard_has_no_problems_and_says_what_was_looked_at() -> None:
    assert lines(state(), healthy()) == []
    assert {finding.level for finding in findings(state(), healthy())} == {"ok"}
    assert any("streams" in finding.text for finding in findings(state(), healthy()))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({A.id: Observed(walsenders=())}, ['error: peer "6589d30f": downstream replication peer not connected']),
        (
            {A.id: Observed(walsenders=(walsender(B, "async"),))},
            ['error: peer "6589d30f": expected downstream replication to be "sync", but found "async"'],
        ),
        (
            {A.id: Observed(walsenders=(walsender(B, "async", state="catchup"),))},
            [f"error: {CATCHUP}"],
        ),
        (
            {A.id: Observed(walsenders=(walsender(C, "async"),))},
            ['error: peer "6589d30f": expected downstream peer to be "10.65.68.51", but found "10.65.68.112"'],
        ),
        (
            {A.id: Observed(walsenders=(walsender(C, "async", state="catchup"),))},
            [
                'error: peer "6589d30f": expected downstream peer to be "10.65.68.51", but found "10.65.68.112"',
                f"error: {CATCHUP}",
            ],
        ),
        ({B.id: Observed(error="refused")}, ["error: cannot query postgres on sync"]),
        ({B.id: Observed()}, ['warning: peer "5e0a09bb": downstream replication peer not connected']),
        ({C.id: Observed(error="refused")}, []),
    ],
)
def test_each_problem_has_its_sentence(changes: dict[str, Observed], expected: list[str]) -> None:
    assert lines(state(), healthy() | changes) == expected


def test_settings_that_wait_for_a_restart_are_named() -> None:
    seen = dict(healthy())
    seen[B.id] = replace(seen[B.id], pending_restart=("max_connections", "shared_buffers"))
    sentence = 'peer "5e0a09bb": changed settings wait for a restart of PostgreSQL: max_connections, shared_buffers'
    assert [str(found) for found in problems(state(), seen)] == [f"warning: {sentence}"]


def test_a_shard_without_asyncs_and_one_with_deposed_peers_warn() -> None:
    assert lines(state(**{"async": []}), healthy()) == ["warning: cluster has no async peers"]
    assert lines(state(deposed=[D, E]), healthy()) == ["warning: cluster has a deposed peer"]


def test_others_in_singleton_mode_are_counted() -> None:
    seen = {A.id: Observed()}
    assert lines(singleton(), seen) == []
    assert lines(singleton(deposed=[D]), seen) == ["warning: found 2 peers in singleton mode"]


# --- Who is at the other end ---------------------------------------------------------------------------------------


def test_a_downstream_is_known_by_its_name_whatever_its_address() -> None:
    """On one machine every connection to 127.0.0.2 comes from 127.0.0.1."""
    seen = healthy() | {A.id: Observed(walsenders=(walsender(B, "sync", address="127.0.0.1"),))}
    assert lines(state(), seen) == []


def test_a_name_that_nobody_bears_is_looked_up_by_address() -> None:
    row = walsender(B, "sync", application_name="walreceiver")
    assert lines(state(), healthy() | {A.id: Observed(walsenders=(row,))}) == []


def test_the_name_of_another_peer_outweighs_the_right_address() -> None:
    row = walsender(C, "async", address=B.ip)
    assert "expected downstream peer" in lines(state(), healthy() | {A.id: Observed(walsenders=(row,))})[0]


def test_backups_and_bypasses_do_not_hide_the_downstream() -> None:
    backup = walsender(B, "async", application_name="pg_basebackup", state="backup")
    bypass = walsender(C, "async")
    seen = healthy() | {A.id: Observed(walsenders=(backup, bypass, walsender(B, "sync")))}
    assert lines(state(), seen) == []
    assert tables.peer_rows(state(), seen)[0]["pg-repl"] == "sync"
    alone = healthy() | {A.id: Observed(walsenders=(backup,))}
    assert lines(state(), alone) == ['error: peer "6589d30f": downstream replication peer not connected']

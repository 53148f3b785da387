"""`manatee-adm` on real ZooKeeper and PostgreSQL, as an operator calls it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from manatee.cluster import ClusterState
from tests.admin.stage import PEERS, Chain, Coordinated, manatee_adm, program, state_of_chain, until

HEAD = "ROLE     PEER     PG   REPL  SENT          FLUSH         REPLAY        LAG   "
Lag = Callable[[], Awaitable[str]]
LSN = r"[0-9A-F]+/[0-9A-F]{8} +"


async def streaming(shard: Coordinated) -> bool:
    run = await manatee_adm("verify", *shard.options)
    return run.status == 0


async def write_something(chain: Chain) -> None:
    async with await psycopg.AsyncConnection.connect(
        host=chain[0].peer.ip, user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS t (n int)")
        await connection.execute("INSERT INTO t VALUES (1)")


async def test_show_of_a_shard_that_is_well(shard: Coordinated, chain: Chain) -> None:
    await shard.write(state_of_chain())
    await until(lambda: streaming(shard))
    await write_something(chain)
    shown = await program("show", "-v", *shard.options)
    lines = shown.out.splitlines()
    assert lines[:5] == [
        "zookeeper:   127.14.0.1",
        f"cluster:     {shard.name}",
        "generation:  1 (0/00000000)",
        "mode:        normal",
        "freeze:      not frozen",
    ]
    assert lines[10] == ""
    assert lines[11] == HEAD
    assert re.fullmatch(rf"primary  aaaaaaaa ok   sync  {LSN}{LSN}{LSN}-     ", lines[12])
    assert re.fullmatch(rf"sync     bbbbbbbb ok   async {LSN}{LSN}{LSN}0m0\ds ", lines[13])
    assert re.fullmatch(r"async    cccccccc ok   -     -             -             -             0m0\ds ", lines[14])
    assert len(lines) == 15
    assert (shown.err, shown.status) == ("", 0)


async def test_options_go_before_or_after_the_subcommand_or_into_the_environment(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    after = await manatee_adm("peers", *shard.options)
    before = await manatee_adm(*shard.options, "peers")
    environs = await manatee_adm("peers", ZK_IPS="127.14.0.1", SHARD=shard.name)
    assert after.out == before.out == environs.out
    assert after.out.count("\n") == 4
    path = await manatee_adm(
        "peers", "-H", "-o", "ip", "-r", "sync", "-z", "127.14.0.1", "-s", f"/manatee/{shard.name}"
    )
    assert path.out == "127.14.0.3      \n"


async def test_a_shard_that_does_not_exist_lists_those_that_do(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    run = await program("show", "-z", "127.14.0.1", "-s", "nosuch")
    assert run.status == 1
    assert run.err.startswith('manatee-adm: unknown shard "nosuch"')
    assert shard.name in run.err
    assert run.err.count("\n") == 1


async def test_a_state_that_does_not_validate_names_the_path_of_the_bad_field(shard: Coordinated) -> None:
    document = state_of_chain().document()
    del document["async"][0]["zoneId"]
    await shard.raw("state", json.dumps(document).encode())
    for command in ("show", "peers", "verify", "unfreeze"):
        run = await manatee_adm(command, *shard.options)
        assert (run.status, run.out) == (1, "")
        assert "async.0.zoneId" in run.err
        assert run.err.count("\n") == 1
    raw = await manatee_adm("zk-state", *shard.options)
    assert json.loads(raw.out) == document


async def test_a_shard_without_a_state_says_so(shard: Coordinated) -> None:
    await shard.raw("election", b"")
    run = await manatee_adm("show", *shard.options)
    assert run.status == 1
    assert run.err == f"manatee-adm: the shard {shard.name} is not set up: it has no cluster state yet\n"


@pytest.mark.parametrize("address", ["127.14.0.99", "127.14.0.98:1,127.14.0.99:1"])
async def test_a_zookeeper_that_is_not_there_is_one_line_in_time(address: str) -> None:
    run = await program("show", "-z", address, "-s", "any")
    assert run.status == 1
    assert "cannot be reached: Connection refused" in run.err
    assert run.err.count("\n") == 1


async def test_a_zookeeper_that_hangs_is_one_line_in_time(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    with shard.hanging():
        run = await program("show", *shard.options)
    assert run.status == 1
    assert run.err.startswith("manatee-adm: ZooKeeper at 127.14.0.1:2181")
    assert run.err.count("\n") == 1


async def test_an_address_that_is_none_is_said(shard: Coordinated) -> None:
    await shard.write(state_of_chain(primary={**PEERS[0].document(), "pgUrl": "nonsense"}))
    run = await manatee_adm("show", *shard.options)
    assert run.status == 1
    assert 'peer "aaaaaaaa": postgres at 127.14.0.2: not a PostgreSQL address' in run.err


async def test_an_unreachable_and_a_hanging_postgresql_are_shown_in_time(shard: Coordinated, chain: Chain) -> None:
    """Whatever hangs: what is known is printed, the error line too, and why on standard error."""
    elsewhere = {**PEERS[2].document(), "id": "127.14.0.97:1:1", "ip": "127.14.0.97"}
    elsewhere["pgUrl"] = "tcp://postgres@127.14.0.97:1/postgres"
    await shard.write(state_of_chain(**{"async": [PEERS[2].document(), elsewhere]}))
    with chain[0].suspended():
        run = await program("show", *shard.options)
    rows = [line[:22].split() for line in run.out.splitlines()[7:11]]
    assert [row[2] for row in rows] == ["fail", "ok", "ok", "fail"]
    assert "\n\nerror: cannot query postgres on primary\n" in run.out
    assert run.status == 1
    assert run.err.splitlines() == [
        'manatee-adm: peer "aaaaaaaa": postgres at 127.14.0.2:5432: no answer within 4 s',
        'manatee-adm: peer "cccccccc": postgres at 127.14.0.97:1: Connection refused',
    ]
    await until(lambda: streaming_or_async_missing(shard))


async def streaming_or_async_missing(shard: Coordinated) -> bool:
    run = await manatee_adm("verify", *shard.options)
    return "sync" not in run.out.replace("async", "")


async def test_verify_says_what_is_wrong_and_exits_with_it(shard: Coordinated, chain: Chain) -> None:
    await shard.write(state_of_chain())
    await until(lambda: streaming(shard))
    quiet = await manatee_adm("verify", *shard.options)
    verbose = await manatee_adm("verify", "-v", *shard.options)
    assert (quiet.out, quiet.status) == ("", 0)
    assert verbose.out.splitlines()[-1] == "all checks passed"
    assert 'ok: "bbbbbbbb" streams from "aaaaaaaa" (sync)' in verbose.out
    chain[2].stop()
    try:
        bad = await manatee_adm("verify", *shard.options)
    finally:
        chain[2].start()
    assert bad.out == 'warning: peer "bbbbbbbb": downstream replication peer not connected\n'
    assert bad.status == 1
    await until(lambda: streaming(shard))


async def test_lag_is_how_far_a_peer_is_behind_and_nothing_when_it_has_replayed_all(
    shard: Coordinated, chain: Chain
) -> None:
    await shard.write(state_of_chain())
    await until(lambda: streaming(shard))

    async def on_async(query: str) -> object:
        async with await psycopg.AsyncConnection.connect(
            host=chain[2].peer.ip, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            return (await (await connection.execute(query)).fetchone() or [None])[0]

    async def lag() -> str:
        shown = await manatee_adm("pg-status", "-H", "-o", "pg-lag", "-r", "async", *shard.options)
        return shown.out.strip()

    await write_something(chain)
    await on_async("SELECT pg_wal_replay_pause()")
    try:
        await asyncio.sleep(1.1)  # the time itself is what is measured
        await write_something(chain)
        assert await until(lambda: behind(lag))
    finally:
        await on_async("SELECT pg_wal_replay_resume()")
    assert await until(lambda: caught_up(lag))


async def behind(lag: Lag) -> bool:
    return await lag() not in ("0m00s", "-")


async def caught_up(lag: Lag) -> bool:
    return await lag() == "0m00s"


async def test_pg_status_repeats(shard: Coordinated, chain: Chain) -> None:
    await shard.write(state_of_chain())
    run = await manatee_adm("pg-status", "0.2", "3", "-o", "role,pg-online", *shard.options)
    assert run.out == "ROLE     PG  \nprimary  ok  \nsync     ok  \nasync    ok  \n" * 3
    assert run.status == 0


async def test_freeze_and_unfreeze_change_nothing_else(shard: Coordinated) -> None:
    await shard.write(state_of_chain(unknown={"kept": [1]}, deposed=[]))
    frozen = await manatee_adm("freeze", "-r", "moving racks", *shard.options)
    assert (frozen.out, frozen.status) == ("Frozen.\n", 0)
    state = await shard.state()
    assert state.frozen
    assert state.document()["unknown"] == {"kept": [1]}
    again = await manatee_adm("freeze", "-r", "again", *shard.options)
    assert again.status == 1
    assert "already frozen since" in again.err
    assert "moving racks" in again.err
    shown = await manatee_adm("show", *shard.options)
    assert "freeze info: moving racks\n" in shown.out
    thawed = await manatee_adm("unfreeze", *shard.options)
    assert (thawed.out, thawed.status) == ("Unfrozen.\n", 0)
    assert "freeze" not in (await shard.state()).document()
    assert (await manatee_adm("unfreeze", *shard.options)).err == "manatee-adm: the shard is not frozen\n"


async def test_a_freeze_never_undoes_what_sitters_write_meanwhile(shard: Coordinated) -> None:
    """Promise 5 and the lesson of the shard that was silently unfrozen: a concurrent generation survives the freeze."""
    await shard.write(state_of_chain())
    stop = asyncio.Event()

    async def declare() -> int:
        while not stop.is_set():
            state = await shard.state()
            await write_over(shard, state.replace(generation=state.generation + 1))
            await asyncio.sleep(0.005)
        return (await shard.state()).generation

    async def write_over(shard: Coordinated, state: ClusterState) -> None:
        from manatee.coordination import Conflict

        try:
            await shard.write(state)
        except Conflict:
            return

    writer = asyncio.create_task(declare())
    runs = [await manatee_adm(*words, *shard.options) for words in (("freeze", "-r", "x"), ("unfreeze",)) * 2]
    stop.set()
    await writer
    assert [run.status for run in runs] == [0, 0, 0, 0]
    entries = await shard.coordination.history()
    generations = [entry.generation for entry in entries]
    assert generations == sorted(g for g in generations if g is not None)
    frozen = [entry.state.frozen for entry in entries if entry.state]
    assert [now for now, before in zip(frozen, [False, *frozen], strict=False) if now != before] == [
        True, False, True, False,
    ]  # fmt: skip
    assert {entry.name[:2] for entry in entries if entry.name.startswith("0-")} == {"0-"}


async def test_history_tells_the_shards_life(shard: Coordinated) -> None:
    a, b, c = (each.document() for each in PEERS)
    await shard.write(state_of_chain())
    await shard.write(
        state_of_chain(generation=2, primary=b, sync=c, deposed=[a], initWal="0/3000000", **{"async": []})
    )
    await manatee_adm("freeze", "-r", "looking", *shard.options)
    plain, verbose, lines = await asyncio.gather(
        manatee_adm("history", *shard.options),
        manatee_adm("history", "-v", *shard.options),
        manatee_adm("history", "-j", *shard.options),
    )
    rows = [line[25:] for line in plain.out.splitlines()]
    assert rows == [
        "G# MODE  FRZ PRIMARY  SYNC     ASYNC    DEPOSED ",
        " 1 multi -   aaaaaaaa bbbbbbbb cccccccc -       ",
        " 2 multi -   bbbbbbbb cccccccc -        aaaaaaaa",
        " 2 multi frz bbbbbbbb cccccccc -        aaaaaaaa",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", plain.out.splitlines()[1][:24])
    told = [line[74:] for line in verbose.out.splitlines()]
    assert told == [
        "SUMMARY",
        "set up: primary aaaaaaaa, sync bbbbbbbb, async cccccccc",
        "generation 2: bbbbbbbb took over from aaaaaaaa (deposed) at 0/03000000, new sync cccccccc",
        "frozen: looking",
    ]
    decoded = [json.loads(line) for line in lines.out.splitlines()]
    assert [entry["state"]["generation"] for entry in decoded] == [1, 2, 2]
    assert [set(entry) for entry in decoded] == [{"zkSeq", "time", "state"}] * 3


async def test_zk_active_shows_who_is_connected(shard: Coordinated) -> None:
    from manatee.cluster import PeerStatus

    await shard.coordination.join(PEERS[0])
    await shard.coordination.publish(PeerStatus(initialized=True, serving=True))
    (entry,) = json.loads((await manatee_adm("zk-active", *shard.options)).out)
    assert entry["id"] == PEERS[0].id
    assert entry["zoneId"] == PEERS[0].zone_id
    assert entry["says"] == {"initialized": True, "serving": True}


async def test_a_promotion_waits_for_its_outcome(shard: Coordinated) -> None:
    """The primary's part is played here: it moves the async up when it is asked to."""
    from manatee.cluster import PeerStatus

    await shard.write(state_of_chain())
    words = ("promote", "-y", "-n", "cccccccc", "-r", "async", *shard.options)
    absent = await manatee_adm(*words)
    assert absent.err == "manatee-adm: cccccccc is not connected to ZooKeeper\n"
    await shard.coordination.join(PEERS[2])
    await shard.coordination.publish(PeerStatus(initialized=True, serving=True, ready=True, generation=1))
    running = asyncio.create_task(manatee_adm(*words))

    async def asked() -> ClusterState | None:
        state = await shard.state()
        return state if state.promote else None

    state = await until(asked)
    assert state is not None
    assert state.promote is not None
    assert (state.promote.id, state.promote.role, state.promote.async_index) == (PEERS[2].id, "async", 0)
    assert state.promote.generation == 1
    moved = state.replace(without=("promote",), generation=2, sync=PEERS[2], asyncs=[PEERS[1]])
    await shard.write(moved)
    run = await running
    assert run.out.splitlines()[-1] == "Promoted: generation 2: cccccccc is now the sync."
    assert run.status == 0


async def test_a_promotion_that_is_not_confirmed_asks_for_nothing(shard: Coordinated) -> None:
    from manatee.cluster import PeerStatus

    await shard.write(state_of_chain())
    await shard.coordination.join(PEERS[2])
    await shard.coordination.publish(PeerStatus(initialized=True, serving=True, ready=True, generation=1))
    run = await manatee_adm("promote", "-n", "cccccccc", "-r", "async", *shard.options, typed="n\n")
    assert run.status == 1
    assert "Go on?" in run.out
    assert (await shard.state()).promote is None


async def test_a_deposed_peer_that_is_gone_is_reaped(shard: Coordinated) -> None:
    await shard.write(state_of_chain(deposed=[PEERS[2].document()], freeze=True, **{"async": []}))
    await shard.coordination.join(PEERS[2])
    refused = await manatee_adm("reap", "-n", "cccccccc", *shard.options)
    assert refused.err.startswith("manatee-adm: cccccccc is connected to ZooKeeper, so it is not gone")
    await shard.coordination.resign()
    run = await manatee_adm("reap", "-i", PEERS[2].ip, *shard.options)
    assert (run.out, run.status) == (f"Reaped: cccccccc (127.14.0.4) is no longer deposed in {shard.name}.\n", 0)
    state = await shard.state()
    assert (state.deposed, state.frozen, state.generation) == ((), True, 1)
    last = (await shard.coordination.history())[-1]
    assert (last.name[:2], last.state) == ("0-", state)
    again = await manatee_adm("reap", "-n", "cccccccc", *shard.options)
    assert (again.out, again.status) == ("", 1)
    unnamed = await manatee_adm("reap", *shard.options)
    assert "option is required: --zonename or --ip" in unnamed.err


async def test_a_request_to_promote_is_withdrawn(shard: Coordinated) -> None:
    await shard.write(state_of_chain(promote={"id": PEERS[1].id, "role": "sync"}))
    run = await manatee_adm("clear-promote", *shard.options)
    assert (run.out, run.status) == ("Cleared the request to promote.\n", 0)
    assert (await shard.state()) == state_of_chain()
    assert (await manatee_adm("clear-promote", *shard.options)).err == "manatee-adm: no promotion is asked for\n"


async def test_what_manatee_2_changed_in_place_is_explained_and_not_changed(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    on, off = [await manatee_adm("set-onwm", "-y", "-m", mode, *shard.options) for mode in ("on", "off")]
    assert on.status == 1
    assert on.err.startswith("manatee-adm: one-node-write mode cannot be switched on in a shard that has peers")
    assert (off.out, off.status) == ("The shard is in normal mode already.\n", 0)
    await shard.write(state_of_chain(sync=None, oneNodeWriteMode=True, **{"async": []}))
    leave = await manatee_adm("set-onwm", "-y", "-m", "off", *shard.options)
    assert leave.status == 1
    assert "settings file of aaaaaaaa (127.14.0.2) and restart its sitter" in leave.err
    backfill = await manatee_adm("state-backfill", *shard.options)
    assert backfill.err == "manatee-adm: the shard has a cluster state: there is nothing to fill in\n"
    assert (await shard.state()).one_node_write_mode
    assert len(await shard.coordination.history()) == 2


async def test_version_loads_neither_driver() -> None:
    import subprocess
    import sys

    from tests.admin.stage import environment

    code = (
        "import sys; sys.argv = ['manatee-adm', 'version']\n"
        "from admin.main import cli\n"
        "cli(standalone_mode=False)\n"
        "print(sorted(m for m in ('psycopg', 'kazoo', 'pydantic', 'aiohttp', 'rich') if m in sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert out == "3.0.0\n[]\n"

"""What a running PostgreSQL needs from time to time: nothing that a promise rests on stays loosened, no WAL goes that a
peer still needs, and none stays that nobody will ask for."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
import structlog

from admin.postgres import observe
from manatee.config import BadConfiguration
from manatee.lsn import Lsn
from sitter.postgres import access, compare, findings, queries, role, slots
from sitter.postgres.configuration import NOBODY, Replication
from sitter.postgres.slots import Plan, Slot
from sitter.postgres.upkeep import Upkeep
from tests.postgres.local import USER, Machines, Node, until

A, B = "10.0.0.1:5432:12345", "10.0.0.2:5432:12345"


def upkeep(node: Node) -> Upkeep:
    return Upkeep(node.settings, node.server, structlog.get_logger())


# --- Settings that something else wins over -------------------------------------------------------------------------


async def test_what_a_role_or_a_database_says_against_a_promise_is_taken_away(machines: Machines) -> None:
    """Promise 1: ALTER ROLE and ALTER DATABASE win over every file. A session's own SET stays the client's business."""
    node = machines.initialized()
    await node.start_primary(NOBODY)
    async with await node.connect() as connection:
        await connection.execute("set synchronous_commit = local")
        await connection.execute('create role "a client" login')
        await connection.execute('alter role "a client" set synchronous_commit = off')
        await connection.execute('alter role "a client" in database postgres set wal_sender_timeout = 0')
        await connection.execute("alter database template1 set synchronous_commit = remote_write")
        await connection.execute("alter role all set tcp_keepalives_idle = 7200")
        await connection.execute("alter role postgres set synchronous_commit = remote_apply")
        await connection.execute('alter role "a client" set default_transaction_read_only = on')
        await connection.execute("alter role \"a client\" set work_mem = '9MB'")
    keeper = upkeep(node)
    assert not await keeper.look()
    assert sorted(keeper.document()["overridden"]) == [
        "synchronous_commit = off for role a client",
        "synchronous_commit = remote_write for database template1",
        "tcp_keepalives_idle = 7200 for all roles",
        "wal_sender_timeout = 0 for role a client in database postgres",
    ]
    assert keeper.document()["repairs"] == 4
    assert await keeper.look()
    assert keeper.document()["overridden"] == []
    left = await node.sql("select unnest(setconfig) word from pg_db_role_setting order by word")
    assert [word for (word,) in left] == [
        "default_transaction_read_only=on",
        "synchronous_commit=remote_apply",
        "work_mem=9MB",
    ]


async def test_every_owned_setting_is_put_right_again(machines: Machines) -> None:
    """By ALTER SYSTEM, or by a hand in its file: not only those that a look at the facts shows."""
    node = machines.initialized()
    await node.start_primary()
    with (node.data_dir / "postgresql.auto.conf").open("a") as lines:
        lines.write("wal_sender_timeout = 0\nwork_mem = '9MB'\n")
    node.postmaster.reload()

    async def says(name: str, value: str) -> bool:
        return bool(await node.value(f"show {name}") == value)

    await until(lambda: says("wal_sender_timeout", "0"))
    keeper = upkeep(node)
    assert not await keeper.look()
    assert [word.split(" by ")[0] for word in keeper.document()["wrong"]] == ["wal_sender_timeout is '0'"]
    await until(lambda: says("wal_sender_timeout", "8s"))
    assert await node.value("show work_mem") == "9MB"
    assert keeper.document()["repairs"] == 1


async def test_what_waits_for_a_restart_and_what_cannot_be_read_is_shown(machines: Machines) -> None:
    node = machines.initialized()
    base = node.settings.postgres.config_file
    assert base is not None
    await node.start_primary()
    keeper = upkeep(node)
    assert await keeper.look()
    assert not any(keeper.document()[key] for key in ("wrong", "pendingRestart", "broken", "overridden", "problem"))
    base.write_text(base.read_text() + "max_connections = 41\nwork_mem = 7MB\n")
    node.postmaster.reload()
    await until(lambda: sees(keeper, "pendingRestart", ["max_connections"]))
    assert keeper.document()["wrong"] == keeper.document()["broken"] == []
    base.write_text(base.read_text() + "work_mem = = 8MB\n")
    node.postmaster.reload()
    assert await keeper.look()
    (broken,) = keeper.document()["broken"]
    assert f"{base}:7: syntax error" in broken


async def sees(keeper: Upkeep, key: str, what: object) -> bool:
    await keeper.look()
    return bool(keeper.document()[key] == what)


async def test_settings_that_are_read_again_count_and_broken_ones_change_nothing(machines: Machines) -> None:
    node = machines.initialized()
    base = node.settings.postgres.config_file
    assert base is not None
    await node.start_primary(NOBODY)
    rendered = node.settings.sitter.state_dir / "postgresql.conf"
    base.write_text(base.read_text() + "work_mem = '7MB'\n")
    await node.server.reread()
    assert node.server.refused is None
    assert await node.value("show work_mem") == "7MB"
    before = rendered.read_text()
    base.write_text(base.read_text() + "work_mem = = 8MB\n")
    await node.server.reread()
    assert node.server.refused is not None
    assert "postgres" in node.server.refused
    assert rendered.read_text() == before
    assert await node.value("show synchronous_standby_names") == f'"{NOBODY}"'
    base.write_text(base.read_text().replace("= =", "="))
    await node.server.reread()
    assert node.server.refused is None
    assert await node.value("show work_mem") == "8MB"


# --- The role -------------------------------------------------------------------------------------------------------


async def test_the_role_has_its_password_whatever_was_there(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary(NOBODY)
    (node.data_dir / "pg_hba.conf").write_text(
        "local all postgres trust\nhost all,replication replication 127.0.0.0/8 scram-sha-256\n"
    )
    node.postmaster.reload()
    name, first, second = "replication", "s3cret:\\'\"$", "another"
    async with queries.connect(node.settings) as connection:
        assert await role.ensure(connection, name, first) == "created"
        assert await role.ensure(connection, name, first) is None
        assert await role.ensure(connection, name, second) == "given its password"
        await connection.execute("begin read write; set local synchronous_commit = local")
        await connection.execute("revoke pg_monitor from replication; commit")
        assert await role.ensure(connection, name, second) == "granted what it lacked"
        await connection.execute("begin read write; set local synchronous_commit = local")
        await connection.execute("alter role replication nologin; commit")
        assert await role.ensure(connection, name, second) == "given its password"
    here = {"host": node.settings.peer.ip, "user": name}
    async with await node.connect(**here, password=second, replication="true", dbname="") as connection:
        await connection.execute("IDENTIFY_SYSTEM")
    async with await node.connect(**here, password=second) as connection:
        for needed in (  # what pg_rewind asks of its source
            "select count(*) from pg_ls_dir('.', true, false), pg_stat_file('global/pg_control', true)",
            "select pg_read_binary_file('global/pg_control', 0, 100, true)",
            "select flush_lsn from pg_stat_replication",
        ):
            await connection.execute(needed)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await node.connect(**here, password=first)


async def test_no_password_is_ever_sent_to_postgresql(machines: Machines) -> None:
    """Nor a verifier logged, whatever the operator has logged."""
    node = machines.initialized()
    base = node.settings.postgres.config_file
    assert base is not None
    base.write_text(base.read_text() + "log_statement = all\nlog_min_duration_statement = 0\n")
    await node.start_primary(NOBODY)
    async with queries.connect(node.settings) as connection:
        await role.ensure(connection, "replication", "hunter2hunter2")
    verifier = str(await node.value("select rolpassword from pg_authid where rolname = 'replication'"))
    said = "\n".join(node.postmaster.last_lines)
    assert "pg_authid" in said, "its statements are logged"
    assert "hunter2" not in said
    assert verifier.split("$")[2] not in said
    assert role.is_verifier_of(verifier, "hunter2hunter2")
    assert not role.is_verifier_of(verifier, "hunter2hunter")
    assert not role.is_verifier_of("md5abc", "hunter2hunter2")
    assert not role.is_verifier_of(None, "hunter2hunter2")


async def test_who_may_not_come_as_superuser_comes_as_the_role(machines: Machines) -> None:
    """Superuser over the Unix socket alone: the sitter compares, and manatee-adm looks, by the role."""
    secret = machines.directory / "password"
    secret.touch(mode=0o600)
    secret.write_text("s3cret\n")
    node = machines.initialized(replication_user="replication", replication_password_file=secret)
    (node.data_dir / "pg_hba.conf").write_text(
        "local all postgres trust\nhost all,replication replication 127.0.0.0/8 scram-sha-256\n"
    )
    await node.start_primary()
    assert not await upkeep(node).look()
    me = node.settings.identity
    assert (await compare.their_log(node.settings, me)).timeline == 1
    seen = (await observe([me], node.settings))[me.id]
    assert seen.online, seen.error
    assert "no pg_hba.conf entry" in str((await observe([me]))[me.id].error)
    passfile = node.settings.sitter.state_dir / "replication.pgpass"
    assert (passfile.stat().st_mode & 0o777, passfile.owner()) == (0o600, USER)
    secret.chmod(0o604)
    with pytest.raises(BadConfiguration, match=r"replication_password_file = .*: anybody on this machine may use it"):
        access.check(node.settings)
    secret.chmod(0o600)
    secret.write_text("one\ntwo\n")
    with pytest.raises(BadConfiguration, match="expected one line of 1 to 512 printable ASCII characters") as caught:
        access.check(node.settings)
    assert "two" not in str(caught.value)


# --- Slots ----------------------------------------------------------------------------------------------------------


def test_slots_are_kept_for_who_is_there_and_for_who_may_come_back() -> None:
    here, there = slots.name(A), slots.name(B)
    kept = Slot(there, Lsn(100), "extended")
    assert slots.plan([], {A: Lsn(1), B: Lsn(200)}, me=A) == Plan(create=(there,))
    assert slots.plan([kept], {B: Lsn(200)}, me=A) == Plan(advance=((there, Lsn(200)),))
    assert slots.plan([kept], {B: Lsn(50)}, me=A) == Plan(), "never back"
    assert slots.plan([kept], {}, me=A) == Plan(), "away"
    for gone in (Slot(there, Lsn(100), "lost"), Slot(there, None, None)):
        assert slots.plan([gone], {}, me=A) == Plan(drop=(there,))
        assert slots.plan([gone], {B: Lsn(200)}, me=A) == Plan(drop=(there,)), "made anew by the next look"
    assert slots.plan([Slot(here, Lsn(1), "reserved")], {}, me=A) == Plan(drop=(here,)), "came with another's data"
    assert slots.plan([kept], None, me=A) == Plan(drop=(there,)), "no slots are wanted any more"


@pytest.mark.parametrize("peer", [A, "fd00:1234:5678:9abc:def0:1234:5678:9abc:65432:65431", "x" * 200])
def test_a_slots_name_is_one(peer: str) -> None:
    name = slots.name(peer)
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert slots.name(peer + "1") != name


async def segments(node: Node) -> int:
    return len([path for path in (node.data_dir / "pg_wal").iterdir() if len(path.name) == 24])


async def much_wal(node: Node, times: int) -> None:
    """So many times 16 MiB and more, with checkpoints, so that what nobody needs goes."""
    for _ in range(times):
        await node.sql("select pg_logical_emit_message(false, '', repeat('x', 1 << 20)) from generate_series(1, 17)")
        await node.sql("checkpoint")


async def with_slots(machines: Machines, megabytes: int) -> tuple[Node, Node]:
    """A primary and its standby that keep slots for each other."""
    primary = machines.initialized(max_slot_wal_keep_size=megabytes)
    base = primary.settings.postgres.config_file
    assert base is not None
    base.write_text(base.read_text() + "wal_keep_size = 0\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n")
    await primary.start_primary()
    standby = machines.empty(max_slot_wal_keep_size=megabytes)
    await asyncio.to_thread(machines.copy, primary, standby)
    await standby.start_standby(primary)
    return primary, standby


async def test_a_peer_that_was_away_finds_all_the_wal_that_it_needs(machines: Machines) -> None:
    primary, standby = await with_slots(machines, 1024)
    keeper, me = upkeep(primary), standby.settings.identity.id
    redo = (await queries.facts(standby.settings)).redo
    assert redo is not None
    keeper.tell({me: redo})
    assert not await keeper.look()
    assert await keeper.look()
    await standby.postmaster.stop("fast", timeout=10)
    keeper.tell({})
    await much_wal(primary, 8)
    assert await keeper.look()
    assert await segments(primary) >= 8
    await standby.start_standby(primary)

    async def streams() -> bool:
        facts = await queries.facts(standby.settings)
        return facts.flush >= (await queries.facts(primary.settings)).flush and facts.receiver is not None

    await until(streams)
    await standby.sql("checkpoint")
    redo = (await queries.facts(standby.settings)).redo
    assert redo is not None
    keeper.tell({me: redo})
    await keeper.look()
    await much_wal(primary, 1)
    assert await segments(primary) <= 6, "what it has is not kept for it"


async def test_for_a_peer_without_proof_of_the_generation_one_checkpoint_is_made(machines: Machines) -> None:
    """It can compare from there; the one that it was restored from may be older than what its upstream holds."""
    node = machines.initialized()
    await node.start_primary(NOBODY)
    keeper = upkeep(node)

    async def redo_after(unproven: frozenset[tuple[str, int]]) -> Lsn | None:
        async with await node.connect() as connection:
            await connection.execute("set synchronous_commit = local")
            await connection.execute("select pg_logical_emit_message(true, 'test', '')")
        keeper.tell({}, unproven)
        await keeper.look()
        return (await queries.facts(node.settings)).redo

    before = await redo_after(frozenset())
    helped = await redo_after(frozenset({(A, 2)}))
    assert before is not None
    assert helped is not None
    assert helped > before
    assert await redo_after(frozenset({(A, 2)})) == helped, "once is enough"
    later = await redo_after(frozenset({(A, 3)}))
    assert later is not None
    assert later > helped


async def test_a_peer_that_never_returns_does_not_fill_the_disk(machines: Machines) -> None:
    primary, standby = await with_slots(machines, 48)
    keeper, me = upkeep(primary), standby.settings.identity.id
    keeper.tell({me: Lsn(1)})
    await keeper.look()
    await standby.postmaster.stop("fast", timeout=10)
    keeper.tell({})
    await much_wal(primary, 8)
    assert (await status(primary)).get(slots.name(me)) == "lost"
    await much_wal(primary, 1)
    assert await segments(primary) <= 9
    assert not await keeper.look()
    assert await status(primary) == {}
    await standby.postmaster.stop("immediate", timeout=5)


async def test_slots_are_kept_on_a_standby_and_outlive_its_promotion(machines: Machines) -> None:
    primary, standby = await with_slots(machines, 1024)
    keeper, me = upkeep(standby), standby.settings.identity.id
    facts = await queries.facts(primary.settings)
    assert facts.redo is not None
    for each in (upkeep(primary), keeper):
        each.tell({A: facts.redo, me: facts.redo})
        await each.look()
        assert each.last.problem is None
    await much_wal(primary, 2)

    async def caught_up() -> bool:
        there = await queries.facts(standby.settings)
        return there.replay == (await queries.facts(primary.settings)).flush

    await until(caught_up)
    await standby.sql("checkpoint")
    redo = (await queries.facts(standby.settings)).redo
    assert redo is not None
    assert redo > facts.redo
    keeper.tell({A: redo})
    await keeper.look()
    await standby.server.configure(Replication(NOBODY, read_only=True))
    await primary.crash()
    await standby.sql("select pg_promote()")
    found = {slot.name: slot for slot in await look(standby)}
    assert found.keys() == {slots.name(A)}
    assert found[slots.name(A)].restart == redo
    assert not found[slots.name(A)].lost


async def look(node: Node) -> list[Slot]:
    async with await node.connect() as connection:
        return await slots.look(connection)


async def status(node: Node) -> dict[str, Any]:
    return {slot.name: slot.status for slot in await look(node)}


def test_findings_that_are_not_the_sitters_are_none() -> None:
    assert str(findings.Override(None, None, "synchronous_commit", "off")) == "synchronous_commit = off for all roles"

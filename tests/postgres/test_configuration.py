"""The settings that carry the promises are in force, whatever else says otherwise."""

from __future__ import annotations

from pathlib import Path

import psycopg.conninfo

from manatee.cluster import Peer
from manatee.config import load
from sitter.postgres import configuration, controldata, initdb
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from tests.postgres.local import HBA, Machines, until
from tests.unit.test_config import written

REPLICATION = {"postgres.replication_user": "replication", "postgres.replication_password_file": "/p"}


def peer(url: str) -> Peer:
    return Peer(id="x", ip="127.12.0.1", zone_id="z", pg_url=url)


async def test_the_rendered_settings_are_in_force(machines: Machines) -> None:
    node = machines.initialized()
    node.settings.postgres.config_file.write_text("fsync = off\nmax_connections = 30\nwork_mem = '7MB'\nport = 1\n")  # type: ignore[union-attr]
    await node.start_primary(NOBODY)
    expected = {**node.foundation, **Replication(NOBODY, read_only=False).values()}
    connection = await node.connect()
    assert await configuration.read_back(connection, node.settings, expected) == []
    assert await node.value("show fsync") == "on"
    assert await node.value("show max_connections") == "30"
    assert await node.value("show work_mem") == "7MB"
    assert await node.value("show max_wal_senders") == "10"
    await connection.close()


async def test_auto_conf_does_not_win(machines: Machines) -> None:
    """Promise 1: `synchronous_standby_names` emptied by ALTER SYSTEM, or by a snapshot that carries it, is repaired."""
    node = machines.initialized()
    auto = node.data_dir / "postgresql.auto.conf"
    with auto.open("a") as lines:
        lines.write("synchronous_standby_names = ''\n Fsync='off'\nwork_mem = '9MB'\n")
    await node.start_primary(NOBODY)
    assert await node.value("show synchronous_standby_names") == f'"{NOBODY}"'
    assert await node.value("show fsync") == "on"
    assert await node.value("show work_mem") == "9MB"

    with auto.open("a") as lines:
        lines.write("synchronous_standby_names = ''\n")
    node.postmaster.reload()
    wanted = Replication(NOBODY, read_only=False).values()

    async def wrong() -> list[configuration.Wrong]:
        connection = await node.connect()
        try:
            return await configuration.read_back(connection, node.settings, wanted)
        finally:
            await connection.close()

    found = await until(wrong)
    assert [(item.name, item.found, item.source) for item in found] == [
        ("synchronous_standby_names", "", str(auto)),
    ]
    assert configuration.clean_auto_conf(node.settings) == {"synchronous_standby_names": "''"}
    node.postmaster.reload()

    async def right() -> bool:
        return not await wrong()

    await until(right)
    assert configuration.clean_auto_conf(node.settings) == {}


async def test_alter_system_is_off_where_it_can_be(machines: Machines) -> None:
    node = machines.initialized()
    await node.start_primary()
    if node.version >= 17:
        assert await node.value("show allow_alter_system") == "off"
    else:
        assert "allow_alter_system" not in node.foundation


async def test_any_name_survives_postgresql(machines: Machines) -> None:
    node = machines.initialized()
    name = "a \\ 'b' \"c\", *, first 2 (x)"
    await node.start_primary(name)
    assert await node.value("show synchronous_standby_names") == configuration.standby_names(name)
    await node.server.configure(Replication(ALONE, read_only=True))

    async def emptied() -> bool:
        return bool(await node.value("show synchronous_standby_names") == "")

    await until(emptied)
    assert await node.value("show default_transaction_read_only") == "on"


def test_conninfo_quotes_what_needs_it(tmp_path: Path) -> None:
    settings = load(written(tmp_path, {"sitter.state_dir": "/o'c x", **REPLICATION}))
    line = configuration.conninfo(settings, peer("tcp://postgres@127.12.0.1:5432/postgres"), database="postgres")
    assert line.startswith("host=127.12.0.1 port=5432 user=replication passfile='/o\\'c x/replication.pgpass' ")
    assert " sslmode=prefer dbname=postgres application_name=tcp://postgres@127.0.0.2:5432/postgres " in line
    assert psycopg.conninfo.conninfo_to_dict(line)["passfile"] == "/o'c x/replication.pgpass"


async def test_a_standby_is_never_smaller_than_its_primary_was(machines: Machines) -> None:
    primary = machines.initialized()
    base = primary.settings.postgres.config_file
    assert base is not None
    base.write_text("max_connections = 77\nmax_prepared_transactions = 5\nshared_buffers = 16MB\n")
    await primary.start_primary()
    standby = await machines.standby_of(primary)
    assert await standby.value("show max_connections") == "77"
    assert await standby.value("show max_prepared_transactions") == "5"
    assert (await controldata.read(standby.settings, timeout=5)).floors["max_connections"] == 77


async def test_access_files_stay_as_they_are_where_they_are_not_managed(machines: Machines) -> None:
    """`postgres.manage_hba = false`: another agent writes them, and a restore or a start changes nothing in them."""
    managed, own = machines.initialized(), machines.empty(manage_hba=False)
    for node in (managed, own):
        node.data_dir.mkdir(exist_ok=True)
        (node.data_dir / "pg_hba.conf").write_text("# the agent's\n")
        initdb.write_access_files(node.settings)
    assert (managed.data_dir / "pg_hba.conf").read_text() == HBA
    assert (own.data_dir / "pg_hba.conf").read_text() == "# the agent's\n"

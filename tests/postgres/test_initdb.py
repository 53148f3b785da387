"""Promise 4: a database is made once, whole or not at all, and never over another."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import structlog

from manatee.config import BadConfiguration
from sitter.postgres import controldata, initdb, rewind, versions
from sitter.postgres.account import Account
from sitter.postgres.errors import PostgresError, ToolFailed
from sitter.postgres.tools import run_tool
from tests.postgres.local import HBA, Machines

LOG = structlog.get_logger()


async def test_a_database_has_its_name_only_when_complete(machines: Machines) -> None:
    node = machines.empty()
    leftover = node.data_dir.with_name("data.new-1")
    (leftover / "base").mkdir(parents=True)
    made = await initdb.initialize(node.settings, LOG, timeout=30)
    assert not node.data_dir.exists()
    assert not leftover.exists()
    assert (made.directory / "pg_hba.conf").read_text() == HBA
    node.settings.sitter.rewind_mark.parent.mkdir(parents=True, exist_ok=True)
    node.settings.sitter.rewind_mark.touch()  # of data that are gone
    initdb.adopt(node.settings, made)
    assert not rewind.torn(node.settings)
    control = await controldata.read(node.settings, timeout=5)
    assert control.system_identifier == made.system_identifier
    assert control.checksums
    assert versions.of_data(node.data_dir) == node.version == await versions.of_programs(node.settings, timeout=5)
    await node.start_primary()
    assert await node.value("select system_identifier::text from pg_control_system()") == made.system_identifier
    assert await node.value("show server_encoding") == "UTF8"


async def test_never_over_an_existing_database(machines: Machines) -> None:
    node = machines.initialized()
    with pytest.raises(PostgresError, match="not empty"):
        await initdb.initialize(node.settings, LOG, timeout=30)


async def test_an_interrupted_initdb_leaves_nothing_under_the_name(machines: Machines) -> None:
    node = machines.empty()
    task = asyncio.create_task(initdb.initialize(node.settings, LOG, timeout=30))
    while not list(node.data_dir.parent.glob("data.new-*")):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not node.data_dir.exists()


async def test_a_tool_that_fails_says_why(machines: Machines) -> None:
    node = machines.empty()
    with pytest.raises(ToolFailed, match=r"pg_controldata: .*could not open file|No such file"):
        await controldata.read(node.settings, timeout=5)
    with pytest.raises(ToolFailed, match="cannot be run"):
        await run_tool(node.settings, "no-such-tool", timeout=5)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", node.settings.postgres.socket_dir / "slow")
    slow = node.settings.model_copy(
        update={"postgres": node.settings.postgres.model_copy(update={"bin_dir": node.settings.postgres.socket_dir})}
    )
    with pytest.raises(ToolFailed, match=r"slow: not finished after 0.2 s"):
        await run_tool(slow, "slow", "60", timeout=0.2)


async def test_root_without_an_unprivileged_user_is_refused(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for user in (None, "root", "no such user"):
        node = machines.empty(user=user)
        with pytest.raises(BadConfiguration, match=r"postgres\.user"):
            Account.of(node.settings)


def test_nothing_is_parsed_into_something_else() -> None:
    with pytest.raises(ToolFailed, match="not understood"):
        controldata.parse("Database system identifier: 12\n")

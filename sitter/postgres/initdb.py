"""`initdb`, beside the live directory, which takes its name only when complete.

Two steps, because between them the shard learns the new database's identifier (design, section 6): `initialize` makes
the database in `data.new-...`, `adopt` gives it the name `data`. A crash between or within leaves no half database
under that name; what is left of an earlier attempt is removed by the next.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from manatee.config import Settings
from manatee.log import Logger
from sitter.postgres import controldata, rewind
from sitter.postgres.account import Account, sync_directory, write_durably
from sitter.postgres.errors import PostgresError, ToolFailed
from sitter.postgres.tools import run_tool

SUPERUSER = "postgres"
LOCALES = ("C.UTF-8", "C")
"""The first that this machine has: both sort by bytes, so peers cannot disagree about the order of an index."""


@dataclass(frozen=True)
class Initialized:
    """A complete database that does not have its name yet."""

    directory: Path
    system_identifier: str


async def initialize(settings: Settings, log: Logger, *, timeout: float) -> Initialized:
    """Make a new database beside `settings.storage.data_dir`, with the operator's pg_hba.conf and pg_ident.conf in it.

    Raises PostgresError if there is a database already, or if initdb fails or takes longer than `timeout` seconds.
    """
    data_dir = settings.storage.data_dir
    if data_dir.exists() and any(data_dir.iterdir()):
        raise PostgresError(f"{data_dir} is not empty: initdb is for a peer that has no data")
    await asyncio.to_thread(_prepare, settings, log)
    directory = data_dir.with_name(f"{data_dir.name}.new-{time.time_ns() // 1_000_000}")
    for locale in LOCALES:
        try:
            await run_tool(settings, "initdb", *_arguments(directory, locale), timeout=timeout)
            break
        except ToolFailed:
            await asyncio.to_thread(shutil.rmtree, directory, True)
            if locale == LOCALES[-1]:
                raise
    write_access_files(settings, directory)
    sync_directory(directory.parent)
    output = await run_tool(settings, "pg_controldata", "-D", str(directory), timeout=settings.postgres.query_timeout)
    identifier = controldata.parse(output).system_identifier
    log.info("database initialized", directory=str(directory), system_identifier=identifier)
    return Initialized(directory, identifier)


def adopt(settings: Settings, initialized: Initialized) -> None:
    """Give the new database its name, durably. Raises OSError, also if another database has that name."""
    data_dir = settings.storage.data_dir
    if data_dir.exists():
        data_dir.rmdir()
    rewind.forget(settings)  # of data that are gone: it would keep these from ever being started
    initialized.directory.rename(data_dir)
    sync_directory(data_dir.parent)


def write_access_files(settings: Settings, directory: Path | None = None) -> None:
    """Write pg_hba.conf and pg_ident.conf into the data directory from the operator's templates, where there are any.

    After initdb, and after a restore, which brings those of another peer; never if `postgres.manage_hba` is off. Raises
    OSError.
    """
    if not settings.postgres.manage_hba:
        return
    account = Account.of(settings)
    for name, template in (
        ("pg_hba.conf", settings.postgres.hba_file),
        ("pg_ident.conf", settings.postgres.ident_file),
    ):
        if template is not None:
            write_durably((directory or settings.storage.data_dir) / name, template.read_bytes(), account)


def _prepare(settings: Settings, log: Logger) -> None:
    """A directory in which the database's user may create its own, without what an earlier attempt left."""
    data_dir, account = settings.storage.data_dir, Account.of(settings)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if account and data_dir.parent.stat().st_uid != account.uid:
        os.chown(data_dir.parent, account.uid, account.gid)
    for old in data_dir.parent.glob(f"{data_dir.name}.new-*"):
        log.warning("removing what an interrupted initdb left", directory=str(old))
        shutil.rmtree(old)


def _arguments(directory: Path, locale: str) -> tuple[str, ...]:
    return (
        *("-D", str(directory), "-U", SUPERUSER, "--encoding=UTF8", f"--locale={locale}", "--data-checksums"),
        *("--auth-local=trust", "--auth-host=scram-sha-256"),
    )

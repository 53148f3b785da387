"""The options that `make demo` and `make cluster` share, and what becomes of a signal or a failure."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import click

from demo.postgresql import NoPostgreSQL, choose
from demo.shard import LocalShard, ShardFailed
from demo.supervisor import UnknownProgram
from demo.zookeeper import ZooKeeperFailed
from manatee import log
from manatee.config import Log
from manatee.coordination import CoordinationError

PEERS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")

FAILURES: tuple[type[Exception], ...] = (
    ShardFailed,
    ZooKeeperFailed,
    NoPostgreSQL,
    CoordinationError,
    UnknownProgram,
    OSError,
)


def shard_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--postgresql", type=int, metavar="MAJOR", help="The version; the newest of Debian's unless given."
        ),
        click.option(
            "--storage",
            type=click.Choice(["basebackup", "zfs"]),
            default="basebackup",
            show_default=True,
            help="Where the peers' data are: in directories, or in a ZFS dataset each.",
        ),
        click.option(
            "--session-timeout", default=4.0, show_default=True, help="Of the peers in ZooKeeper, in seconds."
        ),
        click.option("--postgres-port", default=5432, show_default=True, help="Of every peer's PostgreSQL."),
        click.option("--backup-port", default=12345, show_default=True, help="Of every peer's backup server."),
        click.option("--zookeeper-port", default=2181, show_default=True, help="On 127.0.0.1."),
    ):
        function = option(function)
    return function


def local_shard(
    *,
    postgresql: int | None,
    storage: Literal["basebackup", "zfs"],
    session_timeout: float,
    postgres_port: int,
    backup_port: int,
    zookeeper_port: int,
) -> LocalShard:
    return LocalShard(
        PEERS,
        zookeeper=("127.0.0.1", zookeeper_port),
        postgresql=choose(postgresql),
        storage=storage,
        session_timeout=session_timeout,
        postgres_port=postgres_port,
        backup_port=backup_port,
    )


def run(work: Callable[[], Coroutine[Any, Any, None]], *failures: type[Exception]) -> None:
    """Run to the end, or until a signal; then exit. SIGTERM and SIGHUP end it as cleanly as Ctrl-C does."""
    log.set_up(Log(level="error"))
    received: list[int] = []

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        await work()

    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(watched())
    except (*FAILURES, *failures) as error:
        sys.stdout.flush()
        click.echo(f"\nerror: {error}", err=True)
        sys.exit(1)
    if received:
        click.echo(f"\nended by {signal.Signals(received[0]).name}: everything was taken down", err=True)
        sys.exit(128 + received[0])

"""`manatee-sitter`: settings, signals, the status server and the watchdog around one `Daemon`.

SIGTERM and SIGINT: hand over if that is possible, stop PostgreSQL, leave. SIGHUP: the settings file is read again, and
PostgreSQL's; what cannot be used changes nothing, and the log says so.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import click

from manatee import __version__, log
from manatee.config import EXIT_BAD_CONFIGURATION, BadConfiguration, Settings, load
from manatee.reread import reread
from manatee.storage import StorageError
from sitter.daemon import Daemon
from sitter.memory import MemoryLost
from sitter.postgres import access
from sitter.status import StatusServer

STALLED = 70
"""Exit status of a sitter whose loop has stalled (EX_SOFTWARE)."""


@click.command()
@click.option("-c", "--config", required=True, envvar="MANATEE_SITTER_CONFIG", type=Path, help="The settings file.")
@click.version_option(__version__, prog_name="manatee-sitter")
def main(config: Path) -> None:
    """Run this peer's PostgreSQL in the role that the shard gives it."""
    try:
        settings = load(config)
        access.check(settings)
        settings.sitter.state_dir.mkdir(parents=True, exist_ok=True)
        access.lay_out(settings)
        asyncio.run(_run(settings, config))
    except BadConfiguration as error:
        click.echo(f"manatee-sitter: {error}", err=True)
        sys.exit(EXIT_BAD_CONFIGURATION)
    except (MemoryLost, StorageError, OSError) as error:
        sys.exit(f"manatee-sitter: {error}")


async def _run(settings: Settings, path: Path) -> None:
    logger = log.set_up(settings.log, peer=settings.identity.label)
    daemon = Daemon(settings, logger)
    await daemon.open()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.leave)

    def reload() -> None:
        if reread(settings, path, logger, access.check):
            access.lay_out(settings)
            daemon.reload()

    loop.add_signal_handler(signal.SIGHUP, reload)
    status = StatusServer(settings.peer.ip, settings.status_port, daemon.report)
    await status.start()
    logger.info("sitter started", id=settings.identity.id, shard=settings.shard.root, version=__version__)
    _watch(daemon, settings.zookeeper.session_timeout)
    gc.freeze()  # what is here now stays: the collector need not go through a hundred thousand objects again and again
    try:
        await daemon.run()
    finally:
        await status.close()
    logger.info("sitter ended")


def _watch(daemon: Daemon, limit: float) -> None:
    """End the process when its loop does not turn: kazoo's threads would keep the session of such a sitter alive.

    PostgreSQL dies with the process. Two looks in a row must find it stalled, so that a machine that was frozen as a
    whole does not end it before the loop has had its turn.
    """

    def look() -> None:
        strikes = 0
        while strikes < 2:
            time.sleep(limit / 4)
            strikes = strikes + 1 if time.monotonic() - daemon.turned_at > limit else 0
        os.write(2, f"manatee-sitter: the main loop has not turned for {limit:g} s: ending\n".encode())
        os._exit(STALLED)

    threading.Thread(target=look, name="watchdog", daemon=True).start()


if __name__ == "__main__":
    main()

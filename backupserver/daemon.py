"""How this package's programs begin and end: settings, log, and a word when the service manager wants them to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

from manatee.config import EXIT_BAD_CONFIGURATION, BadConfiguration, Settings, load
from manatee.log import Logger, set_up
from manatee.reread import reread
from manatee.storage import StorageError

Serve = Callable[[Settings, Logger, asyncio.Event], Awaitable[None]]
"""Runs until the event is set, and has ended everything of its own when it returns."""


def run(name: str, description: str, serve: Serve) -> int:
    """Read the command line and the settings, and `serve`; the exit status. Mistakes are one line each."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the peer's settings (TOML)")
    arguments = parser.parse_args()
    try:
        settings = load(arguments.config)
    except BadConfiguration as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_CONFIGURATION
    logger = set_up(settings.log, service=name, peer=settings.identity.id)
    try:
        asyncio.run(_until_stopped(settings, arguments.config, logger, serve))
    except BadConfiguration as error:
        logger.error("cannot run", error=str(error))
        return EXIT_BAD_CONFIGURATION
    except (OSError, LookupError, StorageError) as error:
        logger.error("cannot run", error=str(error))
        return 1
    return 0


async def _until_stopped(settings: Settings, path: str, logger: Logger, serve: Serve) -> None:
    """SIGTERM and SIGINT: stop. SIGHUP: the settings file is read again."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reread, settings, path, logger)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, logger, stop)

"""`manatee-backupserver`: streams a snapshot of this peer's data to a new peer."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from backupserver import daemon
from backupserver.server import BackupServer, read_token
from manatee.config import Settings
from manatee.log import Logger
from manatee.storage import Storage, StorageError, open_storage
from manatee.tls import server_context

RELEASE_EVERY = 600.0
"""Seconds between two looks for what a transfer could not let go of."""


async def serve(settings: Settings, logger: Logger, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set.

    Raises OSError when the address or the token cannot be used, BadCertificate for the files of `tls`.
    """
    read_token(settings)
    encrypted = server_context(settings.tls, settings.peer.ip, logger) if settings.tls else None
    storage = open_storage(settings)
    await _release_stale(storage, logger)
    server = BackupServer(settings, storage, logger)
    runner = server.runner()
    await runner.setup()
    releasing = asyncio.create_task(_keep_releasing(storage, logger))
    try:
        await web.TCPSite(runner, settings.peer.ip, settings.peer.backup_port, ssl_context=encrypted).start()
        logger.info("serving", url=settings.identity.backup_url, driver=settings.storage.driver)
        await stop.wait()
        logger.info("stopping")
    finally:
        releasing.cancel()
        await server.end_transfers()
        await runner.cleanup()
        await asyncio.gather(releasing, return_exceptions=True)


async def _keep_releasing(storage: Storage, logger: Logger) -> None:
    """Until cancelled: what could not be released when its transfer ended must not keep a snapshot for good."""
    while True:
        await asyncio.sleep(RELEASE_EVERY)
        await _release_stale(storage, logger)


async def _release_stale(storage: Storage, logger: Logger) -> None:
    try:
        await storage.release_stale()
    except StorageError as error:
        logger.warning("what transfers before may have held stays held for now", error=str(error))


def main() -> None:
    """The console script."""
    sys.exit(daemon.run("manatee-backupserver", "Streams a snapshot of this peer's data to a new peer.", serve))


if __name__ == "__main__":
    main()

"""`manatee-backupserver`: streams a snapshot of this peer's data to a new peer."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from backupserver import daemon
from backupserver.server import BackupServer, read_token
from manatee.config import Settings
from manatee.log import Logger
from manatee.storage import StorageError, open_storage
from manatee.tls import server_context


async def serve(settings: Settings, logger: Logger, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set.

    Raises OSError when the address or the token cannot be used, BadCertificate for the files of `tls`.
    """
    read_token(settings)
    encrypted = server_context(settings.tls, settings.peer.ip, logger) if settings.tls else None
    storage = open_storage(settings)
    try:
        await storage.release_stale()
    except StorageError as error:
        logger.warning("what a server before this one may have held stays held", error=str(error))
    server = BackupServer(settings, storage, logger)
    runner = server.runner()
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.peer.ip, settings.peer.backup_port, ssl_context=encrypted).start()
        logger.info("serving", url=settings.identity.backup_url, driver=settings.storage.driver)
        await stop.wait()
        logger.info("stopping")
    finally:
        await server.end_transfers()
        await runner.cleanup()


def main() -> None:
    """The console script."""
    sys.exit(daemon.run("manatee-backupserver", "Streams a snapshot of this peer's data to a new peer.", serve))


if __name__ == "__main__":
    main()

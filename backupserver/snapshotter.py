"""`manatee-snapshotter`: takes periodic snapshots and prunes them, where the storage driver has any."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from backupserver import daemon
from manatee.config import Settings
from manatee.log import Logger
from manatee.storage import Snapshot, Storage, StorageError, open_storage

RETRY = 60.0
"""Seconds until a snapshot that failed is tried again, if the interval is not shorter."""


SHARED_FOR = 7 * 86400.0
"""Seconds for which a snapshot that another peer has as well is kept beyond `keep`: with it, a rebuild moves only what
has changed since; the older it is, the more that is, and the more room it takes."""


async def serve(settings: Settings, logger: Logger, stop: asyncio.Event) -> None:
    """Keep the newest snapshots, one every interval, until `stop` is set."""
    storage = open_storage(settings)
    if not storage.keeps_snapshots:
        # It stays, so that the service manager does not start it again and again.
        logger.info("this driver keeps no snapshots: nothing to do", driver=storage.driver)
        await stop.wait()
        return
    while not stop.is_set():
        try:
            pause = await look(storage, settings, logger)
        except StorageError as error:
            logger.error("no snapshot could be taken", error=str(error))
            pause = min(RETRY, settings.snapshotter.interval)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


async def look(storage: Storage, settings: Settings, logger: Logger) -> float:
    """Take a snapshot if the newest is older than the interval, and drop the oldest; seconds until the next."""
    wanted = settings.snapshotter
    snapshots = await storage.snapshots()
    unfinished = {each.name: each.resumable_until for each in snapshots if each.resumable_until is not None}
    kept = [each for each in snapshots if each.name not in unfinished]
    age = time.time() - kept[-1].created if kept else wanted.interval
    if age < 0 or age >= wanted.interval:  # below 0: the clock was set back
        if not await storage.has_data():
            return wanted.interval
        if settings.sitter.rewind_mark.exists():
            logger.warning("no snapshot is taken: the data are being rewound, or a rewind was cut short")
            return min(RETRY, wanted.interval)
        kept.append(await storage.take_snapshot())
        logger.info("snapshot taken", snapshot=kept[-1].name)
        age = 0.0
    spared = _spared(kept)
    doomed = [name for name, until in unfinished.items() if until < time.time()]
    for name in (*doomed, *(each.name for each in kept[: -wanted.keep] if each.name not in spared)):
        try:
            await storage.drop_snapshot(name)
        except StorageError as error:
            logger.warning("an old snapshot stays", snapshot=name, error=str(error))
        else:
            logger.info("snapshot dropped", snapshot=name)
    return wanted.interval - age


def _spared(kept: Sequence[Snapshot]) -> frozenset[str]:
    """The newest snapshot shared with each other peer, for as long as it is likely to be worth its room."""
    newest = {each.shared_with: each for each in kept if each.shared_with}  # the oldest come first
    return frozenset(each.name for each in newest.values() if time.time() - each.created < SHARED_FOR)


def main() -> None:
    """The console script."""
    sys.exit(daemon.run("manatee-snapshotter", "Takes periodic snapshots and prunes them.", serve))


if __name__ == "__main__":
    main()

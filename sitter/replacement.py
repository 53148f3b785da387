"""Puts other data in the place of those here: restores them from a peer, or rewinds them to a primary's.

Cancelled at any moment, it leaves the old data, the new ones, or data that a rewind has left half done and that are
marked as such (`torn`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from manatee.cluster import Peer, written_time
from manatee.config import Settings
from manatee.log import Logger
from manatee.storage import Storage, datadir, open_storage
from sitter.bootstrap import Progress
from sitter.bootstrap import Restore as Transfer
from sitter.postgres import configuration, initdb, rewind, versions
from sitter.postgres.account import remove_durably
from sitter.postgres.errors import PostgresError
from sitter.postgres.rewind import Unrewindable
from sitter.postgres.watch import Watch
from sitter.view import Restore, Rewind

REWINDS = 10
"""Attempts at rewinding these data that may fail before anything is changed, for want of the source mostly."""


class Replacement:
    """One at a time, while PostgreSQL does not run."""

    def __init__(self, settings: Settings, watch: Watch, log: Logger, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._watch = watch
        self._log = log
        self._on_change = on_change
        self._rewinds = 0
        self.under_way: Restore | Rewind | None = None
        """What is being done to the data, or about to be: as long as it is, nothing that was known of them counts."""
        self.unrewindable: str | None = None
        """Why these data cannot be rewound, as far as that was tried."""
        self.progress: Progress | None = None
        """Of the one that runs, or of the last."""

    @cached_property
    def storage(self) -> Storage:
        """Where the data are."""
        return open_storage(self._settings)

    @property
    def torn(self) -> bool:
        """A rewind of the data was cut short."""
        return not isinstance(self.under_way, Rewind) and rewind.torn(self._settings)

    @property
    def _mark(self) -> Path:
        return self._settings.storage.data_dir / datadir.RESTORED

    async def open(self) -> None:
        """Make the data reachable, and this peer's own if they took their place when it died. Raises StorageError."""
        await self.storage.open()
        self.make_ours()

    def settled(self) -> None:
        """PostgreSQL runs on the data as they are: what was tried with them before is forgotten."""
        self._rewinds, self.unrewindable = 0, None

    async def run(self, wanted: Restore | Rewind, system_identifier: str | None) -> None:
        """Replace the data by ones of that database. Raises RestoreFailed, StorageError, PostgresError, OSError.

        Data that cannot be rewound are no error: they stay as they are, and `unrewindable` says why.
        """
        self.under_way = wanted
        try:
            if isinstance(wanted, Rewind):
                self.make_ours()
                await self._rewind(wanted.source)
            else:
                await self._restore(wanted.sources, system_identifier)
        finally:
            if self.under_way is wanted:
                self.under_way = None

    async def _rewind(self, source: Peer) -> None:
        begun = Progress("running", source.pg_url, 1, 0, None, written_time(time.time()), None)
        self._rewinds += 1
        try:
            if self._rewinds > REWINDS:
                last = self.progress.error if self.progress else None
                raise Unrewindable(f"they were not rewound in {REWINDS} attempts, the last: {last}")
            await rewind.rewind(
                self._settings,
                source,
                self._log,
                lambda done, total: self._progressed(replace(begun, bytes_done=done, bytes_total=total)),
            )
        except (PostgresError, OSError) as error:
            self._progressed(replace(begun, state="failed", error=str(error)))
            if not isinstance(error, Unrewindable):
                raise
            self.unrewindable = str(error)
            self._log.error("the data cannot be rewound", source=source.label, reason=str(error))
        else:
            self._progressed(replace(self.progress or begun, state="done"))
            self.unrewindable = "they have diverged although they were rewound"  # should that be asked for again
            self._watch.forget_identity()

    async def _restore(self, sources: tuple[Peer, ...], system_identifier: str | None) -> None:
        transfer = Transfer(self._settings, self.storage, self._log, self._progressed)
        self.progress = transfer.progress

        async def before_adopt() -> None:
            self._watch.forget_identity()

        await self.storage.open()
        if self._mark.exists():  # brought before, and kept then by something that has passed from taking their place
            self.make_ours()
            self._progressed(replace(transfer.progress, state="done"))
            return
        version = await versions.of_programs(self._settings, timeout=self._settings.postgres.query_timeout)
        try:
            await transfer.run(
                sources, major_version=str(version), system_identifier=system_identifier, before_adopt=before_adopt
            )
        finally:
            self.make_ours()  # a restore that is given up may have brought them already, or one before it

    def make_ours(self) -> None:
        """What makes data of this peer of those that a restore has brought, if these are such and are not yet ours.

        Before each start of PostgreSQL and each rewind, too, should it have failed after the restore: data that have
        been worked on must never be taken for data that were just received. Raises OSError.
        """
        if not self._mark.exists():
            return
        self.settled()
        rewind.forget(self._settings)
        initdb.write_access_files(self._settings)
        # Should they lead before they have followed: they are promoted then, and begin a timeline of their own.
        configuration.set_standby_signal(self._settings, True)
        remove_durably(self._mark)
        self._watch.forget_identity()

    def _progressed(self, progress: Progress) -> None:
        self.progress = progress
        self._on_change()

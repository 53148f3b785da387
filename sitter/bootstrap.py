"""Restore: this peer's data, streamed from another peer's backup server.

What is received grows beside the live data and takes their place only when the sender has said, in so many words, that
everything was sent, and this end has counted and digested the same. Until then a failure, a kill or a cancellation
leaves what was there as it was. Sources are tried nearest first, a bounded number of times, with growing pauses; what
is going on can be read at any moment (`Restore.progress`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from manatee.cluster import Peer, written_time
from manatee.config import Settings
from manatee.log import Logger
from manatee.pace import Pace, remaining
from manatee.storage import Identity, Receiving, Storage, StorageError
from sitter.source import SourceBusy, SourceFailed, Stream, TargetBroken, TargetStalled, connect

ATTEMPTS = 10
"""Rounds over all sources before a restore is given up; rounds in which a source was merely busy do not count."""
RETRY_AFTER_MAX = 600.0
"""Seconds: the longest pause that a busy source can ask for."""
NOTICE_EVERY = 1.0
"""Seconds between two notices of progress while bytes arrive."""


class RestoreFailed(Exception):
    """No source gave a complete snapshot; the live data are as they were. The message is the last failure's."""


class _TryFailed(Exception):
    """One source, once."""


@dataclass(frozen=True)
class Progress:
    """A restore as `/restore` and `/state` show it."""

    state: Literal["running", "waiting", "failed", "done"]
    source: str | None
    """The backup server's address."""
    attempt: int
    bytes_done: int
    """With what came before, when a stream goes on where this restore was cut."""
    bytes_total: int | None
    """The sender's estimate; never less than what has come, and just that when it is done."""
    started: str
    """When the restore, not this attempt, began."""
    error: str | None
    """Why the last attempt failed."""
    pace: Pace = field(default_factory=Pace, compare=False, repr=False)

    def document(self) -> dict[str, Any]:
        """With `bytes_per_second` and `seconds_left` as of now, null while nothing can be said of them."""
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "pace"}
        rate = self.pace.rate(time.monotonic()) if self.state == "running" else None
        left = remaining(self.bytes_done, self.bytes_total, rate)
        return shown | {"bytes_per_second": rate, "seconds_left": left}


@dataclass(frozen=True)
class Restored:
    """The data that are live now, and where they came from."""

    identity: Identity
    source: Peer
    snapshot: str
    bytes: int
    isolated: Path | None
    """Where the data are that were here before."""


class Restore:
    """One restore. `run` once; cancelling it at any await leaves either the old data live or the new."""

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        logger: Logger,
        on_change: Callable[[Progress], None] | None = None,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._log = logger
        self._on_change = on_change
        self._noticed = 0.0
        self._cut_at = 0
        """Bytes that had come, with those of the streams it continued, when the last stream was cut."""
        self.progress = Progress("running", None, 0, 0, None, written_time(time.time()), None)

    async def run(
        self,
        sources: Sequence[Peer],
        *,
        major_version: str,
        system_identifier: str | None,
        before_adopt: Callable[[], Awaitable[None]],
        attempts: int = ATTEMPTS,
        prefix: str = "restore",
    ) -> Restored:
        """Restore from the first of `sources`, the nearest first, that gives a complete snapshot.

        Those come before the others from which the difference alone may do (`Storage.related`).

        `major_version` is that of the PostgreSQL programs here, `system_identifier` that of the shard if it is known:
        a stream of anything else is refused. `before_adopt` is awaited right before the old data make way, which are
        kept under `isolated/<prefix>-<time>`. PostgreSQL must not run here. Raises RestoreFailed.
        """
        expected = _Expected(major_version, system_identifier)
        failures, delay = 0, self._settings.backup.retry_delay
        try:
            await self._storage.clear_leftovers()
            related = await self._storage.related()
            sources = sorted(sources, key=lambda source: source.id not in related)
            while True:
                self._show(attempt=self.progress.attempt + 1)
                busy: list[float] = []
                for source in sources:
                    try:
                        restored = await self._try(source, expected, before_adopt, prefix)
                    except _TryFailed as error:
                        self._show(state="waiting", error=str(error))
                        self._log.warning("restore failed", source=source.backup_url, error=str(error))
                        if isinstance(error.__cause__, SourceBusy):
                            busy.append(error.__cause__.retry_after)
                    else:
                        self._show(state="done", error=None, bytes_total=self.progress.bytes_done)
                        return restored
                pause = delay
                if busy:
                    pause = min(max(delay, min(busy)), RETRY_AFTER_MAX)
                else:
                    failures += 1
                    delay = min(2 * delay, self._settings.backup.retry_delay_max)
                if failures >= attempts or not sources:
                    raise RestoreFailed(self.progress.error or "there is no peer to restore from")
                await asyncio.sleep(pause)
        except (RestoreFailed, StorageError) as error:
            self._show(state="failed", error=str(error))
            self._log.error("restore given up", attempts=self.progress.attempt, error=str(error))
            raise RestoreFailed(str(error)) from error

    async def _try(
        self,
        source: Peer,
        expected: _Expected,
        before_adopt: Callable[[], Awaitable[None]],
        prefix: str,
    ) -> Restored:
        """One source, once. Raises _TryFailed."""
        self._show(state="running", source=source.backup_url, bytes_done=0, bytes_total=None)
        self._log.info("restoring", source=source.backup_url, attempt=self.progress.attempt)
        try:
            wanted = await self._storage.wanted()
            async with connect(source, self._settings) as server, server.backup(wanted) as stream:
                expected.check(stream.offer.identity)
                async with self._storage.receive(stream.offer) as receiving:
                    identity = await self._take(stream, receiving)
                    expected.check(identity)
                    await before_adopt()
                    isolated = await receiving.adopt(prefix)
        except (StorageError, SourceFailed) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # what failed on the way out is no reason to try again
                raise asyncio.CancelledError from error
            raise _TryFailed(str(error)) from error
        self._log.info(
            "restored",
            source=source.backup_url,
            snapshot=stream.offer.snapshot,
            stream=dict(stream.offer.detail),
            bytes=stream.bytes,
            isolated=str(isolated),
        )
        return Restored(identity, source, stream.offer.snapshot, stream.bytes, isolated)

    async def _take(self, stream: Stream, receiving: Receiving) -> Identity:
        """Everything from the stream into the storage, complete and durable."""
        before = self._cut_at if stream.offer.continues else 0
        expected = None if stream.offer.size is None else before + stream.offer.size
        pace = Pace()
        self._show(pace=pace)

        def arrived(count: int) -> None:
            pace.mark(time.monotonic(), count)
            self._cut_at = done = before + count
            self._show(bytes_done=done, bytes_total=None if expected is None else max(expected, done))

        try:
            await stream.into(receiving.fd, arrived)
        except TargetBroken:
            # A format that knows its own end is through before the stream is; else `complete` says what went wrong.
            identity = await receiving.complete()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                await stream.into(nowhere, arrived)
            finally:
                os.close(nowhere)
            await stream.check_complete()
            return identity
        except TargetStalled as error:
            raise _TryFailed(f"the disk here: {error}") from None
        await stream.check_complete()
        return await receiving.complete()

    def _show(self, **changes: Any) -> None:
        """Change the progress, and tell who wants to know: at once what happened, but not of every byte."""
        before, self.progress = self.progress, replace(self.progress, **changes)
        now = time.monotonic()
        here, there = (replace(each, bytes_done=0, bytes_total=None) for each in (before, self.progress))
        if self._on_change is not None and not (here == there and now - self._noticed < NOTICE_EVERY):
            self._noticed = now
            self._on_change(self.progress)


@dataclass(frozen=True)
class _Expected:
    """Whose data would do here."""

    major_version: str
    system_identifier: str | None

    def check(self, found: Identity) -> None:
        if self.system_identifier not in (None, found.system_identifier):
            raise _TryFailed(
                f"refused: the source holds the database {found.system_identifier}, "
                f"this shard's is {self.system_identifier}"
            )
        if found.major_version != self.major_version:
            raise _TryFailed(
                f"refused: the source runs PostgreSQL {found.major_version}, the programs here are {self.major_version}"
            )

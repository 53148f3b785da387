"""Restore: this peer's data, streamed from another peer's backup server.

What is received grows beside the live data and takes their place only when the sender has said, in so many words, that
everything was sent, and this end has counted and digested the same. Until then a failure, a kill or a cancellation
leaves what was there as it was. Sources are tried nearest first, a bounded number of times, with growing pauses; what
is going on can be read at any moment (`Restore.progress`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel

from manatee.cluster import Peer, written_time
from manatee.config import Backup, Settings
from manatee.log import Logger
from manatee.storage import Identity, Offer, Receiving, Storage, StorageError, pipe

ATTEMPTS = 10
"""Rounds over all sources before a restore is given up; rounds in which a source was merely busy do not count."""
RETRY_AFTER_MAX = 600.0
"""Seconds: the longest pause that a busy source can ask for."""
NOTICE_EVERY = 1.0
"""Seconds between two notices of progress while bytes arrive."""
_ANSWER_LIMIT = 64 << 10
_DETAIL = "Manatee-Detail-"


class RestoreFailed(Exception):
    """No source gave a complete snapshot; the live data are as they were. The message is the last failure's."""


class _TryFailed(Exception):
    """One source, once."""


class _Busy(_TryFailed):
    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Progress:
    """A restore as `/restore` and `/state` show it."""

    state: Literal["running", "waiting", "failed", "done"]
    source: str | None
    """The backup server's address."""
    attempt: int
    bytes_done: int
    bytes_total: int | None
    """The sender's estimate; never less than what has come."""
    started: str
    """When the restore, not this attempt, began."""
    error: str | None
    """Why the last attempt failed."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


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

        `major_version` is that of the PostgreSQL programs here, `system_identifier` that of the shard if it is known:
        a stream of anything else is refused. `before_adopt` is awaited right before the old data make way, which are
        kept under `isolated/<prefix>-<time>`. PostgreSQL must not run here. Raises RestoreFailed.
        """
        expected = _Expected(major_version, system_identifier)
        failures, delay = 0, self._settings.backup.retry_delay
        try:
            await self._storage.clear_leftovers()
            while True:
                self._show(attempt=self.progress.attempt + 1)
                busy: list[float] = []
                for source in sources:
                    try:
                        restored = await self._try(source, expected, before_adopt, prefix)
                    except _TryFailed as error:
                        self._show(state="waiting", error=str(error))
                        self._log.warning("restore failed", source=source.backup_url, error=str(error))
                        if isinstance(error, _Busy):
                            busy.append(error.retry_after)
                    else:
                        self._show(state="done", error=None)
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
            async with _connect(source, self._settings.backup) as server, server.backup(wanted) as stream:
                expected.check(stream.offer.identity)
                async with self._storage.receive(stream.offer) as receiving:
                    identity = await self._take(stream, receiving)
                    expected.check(identity)
                    await before_adopt()
                    isolated = await receiving.adopt(prefix)
        except StorageError as error:
            raise _TryFailed(str(error)) from error
        self._log.info("restored", source=source.backup_url, bytes=stream.bytes, isolated=str(isolated))
        return Restored(identity, source, stream.offer.snapshot, stream.bytes, isolated)

    async def _take(self, stream: _Stream, receiving: Receiving) -> Identity:
        """Everything from the stream into the storage, complete and durable."""
        try:
            while chunk := await stream.read():
                async with asyncio.timeout(self._settings.backup.idle_timeout):
                    await pipe.write(receiving.fd, chunk)
                total = stream.offer.size
                self._show(bytes_done=stream.bytes, bytes_total=None if total is None else max(total, stream.bytes))
        except BrokenPipeError:
            await receiving.complete()  # says why it takes no more
            raise _TryFailed("the storage took no more bytes") from None
        except TimeoutError:
            raise _TryFailed(f"the disk here took no byte for {self._settings.backup.idle_timeout:g} s") from None
        await stream.check_complete()
        return await receiving.complete()

    def _show(self, **changes: Any) -> None:
        """Change the progress, and tell who wants to know: at once what happened, but not of every byte."""
        before, self.progress = self.progress, replace(self.progress, **changes)
        now = time.monotonic()
        only_bytes = replace(before, bytes_done=0, bytes_total=None) == replace(
            self.progress, bytes_done=0, bytes_total=None
        )
        if self._on_change is not None and not (only_bytes and now - self._noticed < NOTICE_EVERY):
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


class _Outcome(BaseModel):
    """What the sender says of a stream (`GET /v2/backup/<id>`)."""

    state: str
    bytes: int
    sha256: str | None = None
    error: str | None = None


class _Stream:
    """The snapshot as it comes in, counted and digested."""

    def __init__(self, server: _Server, response: aiohttp.ClientResponse) -> None:
        self.offer = _offer(response.headers)
        self.bytes = 0
        self._id = response.headers.get("Manatee-Backup", "")
        self._server = server
        self._content = response.content
        self._hashed = hashlib.sha256()

    async def read(self) -> bytes:
        """The next bytes, empty at the end of the stream. Raises _TryFailed, with the sender's reason if it has one."""
        idle = self._server.idle_timeout
        while True:
            try:
                async with asyncio.timeout(idle):
                    chunk = await self._content.readany()
            except TimeoutError:
                if self.bytes == 0 and (await self._server.outcome(self._id)).state == "preparing":
                    continue
                raise _TryFailed(f"no byte came for {idle:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                raise _TryFailed(await self._why(f"the stream broke off: {_words(error)}")) from error
            self.bytes += len(chunk)
            self._hashed.update(chunk)
            return chunk

    async def check_complete(self) -> None:
        """Returns only if the sender says that it sent all of it, and what it sent is what came."""
        outcome = await self._server.outcome(self._id)
        if outcome.state != "done":
            raise _TryFailed(f"the stream ended early: {outcome.error or outcome.state}")
        if outcome.bytes != self.bytes:
            raise _TryFailed(f"the stream was cut: {outcome.bytes} bytes were sent and {self.bytes} came")
        if outcome.sha256 not in (None, self._hashed.hexdigest()):
            raise _TryFailed("the stream was damaged on the way: its digest is not the sender's")

    async def _why(self, seen: str) -> str:
        """What was seen here, and the sender's side of it."""
        try:
            outcome = await self._server.outcome(self._id)
        except _TryFailed:
            return seen
        return f"{seen}; the sender says: {outcome.error or outcome.state}"


class _Server:
    """A peer's backup server. Every answer has `backup.idle_timeout` to begin."""

    def __init__(self, session: aiohttp.ClientSession, url: str, idle_timeout: float) -> None:
        self.idle_timeout = idle_timeout
        self._session = session
        self._url = url.rstrip("/")

    @asynccontextmanager
    async def backup(self, wanted: Mapping[str, str]) -> AsyncIterator[_Stream]:
        """Ask for a snapshot. The connection is closed when the context is left, and with it ends the sender."""
        response = await self._get("/v2/backup", wanted)
        try:
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response)
            yield _Stream(self, response)
        finally:
            response.close()

    async def outcome(self, id: str) -> _Outcome:
        """What became of a stream. Raises _TryFailed if that cannot be found out."""
        response = await self._get(f"/v2/backup/{id}")
        try:
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response)
            async with asyncio.timeout(self.idle_timeout):
                return _Outcome.model_validate_json(await response.content.read(_ANSWER_LIMIT))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _TryFailed(f"the sender does not say whether it sent all of it: {_words(error)}") from error
        finally:
            response.close()

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self.idle_timeout):
                return await self._session.get(self._url + path, params=query, allow_redirects=False)
        except TimeoutError:
            raise _TryFailed(f"{self._url} does not answer") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryFailed(f"{self._url} cannot be reached: {_words(error)}") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> _TryFailed:
        """The server's reason, in its words where it has any."""
        try:
            async with asyncio.timeout(self.idle_timeout):
                reason = str(json.loads(await response.content.read(_ANSWER_LIMIT))["error"])
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
            reason = response.reason or ""
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            after = response.headers.get("Retry-After", "")
            return _Busy(f"{self._url} is busy: {reason}", float(after) if after.isdecimal() else 0.0)
        if response.status == HTTPStatus.UNAUTHORIZED:
            return _TryFailed(f"{self._url} does not take the token in this peer's backup.token_file")
        if response.status == HTTPStatus.NOT_FOUND:
            return _TryFailed(f"{self._url} knows of no such backup, or no version 2 of the protocol: {reason}")
        return _TryFailed(f"{self._url} refuses ({response.status}): {reason}")


@asynccontextmanager
async def _connect(source: Peer, settings: Backup) -> AsyncIterator[_Server]:
    """The peer's backup server, with the token shown on every request. Raises _TryFailed."""
    if source.backup_url is None:
        raise _TryFailed(f"{source.id} names no backup server")
    try:
        token = (await asyncio.to_thread(settings.token_file.read_text)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _TryFailed(f"{settings.token_file} cannot be read: {error}") from error
    if not (token.isascii() and token.isprintable()):
        raise _TryFailed(f"{settings.token_file} holds more than one line, or characters beyond ASCII")
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.idle_timeout),
        auto_decompress=False,
        read_bufsize=pipe.CHUNK,
    ) as session:
        yield _Server(session, source.backup_url, settings.idle_timeout)


def _offer(headers: Mapping[str, str]) -> Offer:
    try:
        size = headers.get("Manatee-Size-Estimate")
        return Offer(
            driver=headers["Manatee-Driver"],
            snapshot=headers["Manatee-Snapshot"],
            identity=Identity(headers["Manatee-System-Identifier"], headers["Manatee-Postgres-Version"]),
            size=None if size is None else int(size),
            detail={name[len(_DETAIL) :]: headers[name] for name in headers if name.startswith(_DETAIL)},
        )
    except (KeyError, ValueError) as error:
        raise _TryFailed(f"the source does not say what it sends: {error}") from error


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

"""A peer's backup server, as a restore sees it: what it offers, its stream, and what it says of that afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp
from pydantic import BaseModel

from manatee.cluster import Peer
from manatee.config import Settings
from manatee.peerserver import NoToken, bearer, session
from manatee.storage import Identity, Offer, pipe
from manatee.tls import BadCertificate

_PREPARING = 4
"""Times the idle timeout: before it answers, a server takes the snapshot, and waits for its disks."""
_ANSWER_LIMIT = 64 << 10
_HEADER_LIMIT = 64 << 10
"""Bytes of one header: what a driver has to say to its other end."""
_DETAIL = "Manatee-Detail-"


class SourceFailed(Exception):
    """It cannot be asked, refuses, or did not send all of it."""


class SourceBusy(SourceFailed):
    """All its streams are taken."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds, as it asks for."""


class TargetBroken(Exception):
    """What is to take the stream takes no more; it knows why."""


class TargetStalled(Exception):
    """What is to take the stream takes nothing any more."""


class _Outcome(BaseModel):
    """What the sender says of a stream (`GET /v2/backup/<id>`)."""

    state: str
    bytes: int
    sha256: str | None = None
    error: str | None = None


class Stream:
    """A snapshot as it comes in, counted, and digested where its format does not check itself.

    Without a digest, TLS or HTTP's own framing the kernel moves it, and no byte of it is in this process.
    """

    def __init__(self, server: Source, response: aiohttp.ClientResponse) -> None:
        self.offer = _offer(response.headers)
        self.bytes = 0
        self.id = response.headers.get("Manatee-Backup", "")
        self._server = server
        self._response = response
        self._hashed = None if response.headers.get("Manatee-Digest") == "none" else hashlib.sha256()

    async def into(self, target: int, on_bytes: Callable[[int], None]) -> None:
        """All of it into a non-blocking pipe; `on_bytes` is told how many have come so far.

        Raises SourceFailed, with the sender's reason if it has one, TargetBroken, TargetStalled.
        """
        transport = self._plain()
        if transport is not None:
            await self._explained(lambda: self._take_over(transport, target))
            on_bytes(self.bytes)
            socket = os.dup(transport.get_extra_info("socket").fileno())
            try:
                await self._explained(lambda: self._splice(socket, target, on_bytes))
                return
            except pipe.NotSpliceable:
                transport.resume_reading()
            finally:
                os.close(socket)
        while await self._explained(lambda: self._copy(target)):
            on_bytes(self.bytes)

    async def check_complete(self) -> None:
        """Returns only if the sender says that it sent all of it, and what it sent is what came."""
        try:
            outcome = await self._server.outcome(self.id)
        except SourceFailed as error:
            raise SourceFailed(f"the stream ended, and nobody says that it was complete: {error}") from error
        if outcome.state != "done":
            raise SourceFailed(f"the stream broke off; the sender says: {outcome.error or outcome.state}")
        if outcome.bytes != self.bytes:
            raise SourceFailed(f"the stream was cut: {outcome.bytes} bytes were sent and {self.bytes} came")
        if self._hashed is not None and outcome.sha256 not in (None, self._hashed.hexdigest()):
            raise SourceFailed("the stream was damaged on the way: its digest is not the sender's")

    async def _take_over(self, transport: asyncio.ReadTransport, target: int) -> int:
        """Hand on what has been read so far, and read not one byte more: the rest is the kernel's."""
        read = self._response.content.read_nowait()
        transport.pause_reading()
        return await self._write(target, read)

    async def _splice(self, socket: int, target: int, on_bytes: Callable[[int], None]) -> int:
        idle, before = self._server.idle_timeout, self.bytes

        def reached(count: int) -> None:
            self.bytes = before + count
            on_bytes(self.bytes)

        await pipe.splice_all(socket, target, reached, first_within=idle, source_within=idle, target_within=idle)
        return self.bytes - before

    async def _copy(self, target: int) -> int:
        try:
            async with asyncio.timeout(self._server.idle_timeout):
                chunk = await self._response.content.readany()
        except TimeoutError:
            raise pipe.SourceStalled from None
        return await self._write(target, chunk)

    async def _write(self, target: int, chunk: bytes) -> int:
        if self._hashed is not None:
            self._hashed.update(chunk)
        try:
            async with asyncio.timeout(self._server.idle_timeout):
                await pipe.write(target, chunk)
        except TimeoutError:
            raise pipe.TargetStalled from None
        self.bytes += len(chunk)
        return len(chunk)

    async def _explained(self, move: Callable[[], Awaitable[int]]) -> int:
        """Move some bytes, and find out why if that fails; how many."""
        while True:
            try:
                return await move()
            except pipe.SourceStalled:
                if self.bytes == 0 and (await self._server.outcome(self.id)).state == "preparing":
                    continue
                raise SourceFailed(f"no byte came for {self._server.idle_timeout:g} s") from None
            except pipe.TargetStalled:
                raise TargetStalled(f"nothing was taken for {self._server.idle_timeout:g} s") from None
            except BrokenPipeError as error:
                raise TargetBroken from error
            except (aiohttp.ClientError, OSError) as error:
                raise SourceFailed(await self._why(f"the stream broke off: {_words(error)}")) from error

    async def _why(self, seen: str) -> str:
        """What was seen here, and the sender's side of it."""
        try:
            outcome = await self._server.outcome(self.id)
        except SourceFailed:
            return seen
        return f"{seen}; the sender says: {outcome.error or outcome.state}"

    def _plain(self) -> asyncio.ReadTransport | None:
        """The connection, if what comes over it is the stream and nothing else."""
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        if not isinstance(transport, asyncio.ReadTransport) or transport.is_closing():
            return None
        framed = "Transfer-Encoding" in self._response.headers or "Content-Length" in self._response.headers
        encrypted = transport.get_extra_info("ssl_object") is not None
        return None if framed or encrypted or self._hashed is not None else transport


class Source:
    """A peer's backup server. Every answer has `backup.idle_timeout` to begin, a snapshot some more."""

    def __init__(self, session: aiohttp.ClientSession, url: str, idle_timeout: float) -> None:
        self.idle_timeout = idle_timeout
        self._session = session
        self._url = url.rstrip("/")

    @asynccontextmanager
    async def backup(self, wanted: Mapping[str, str]) -> AsyncIterator[Stream]:
        """Ask for a snapshot. The connection is closed when the context is left, and with it ends the sender."""
        response = await self._get("/v2/backup", wanted, within=_PREPARING * self.idle_timeout)
        try:
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response)
            yield Stream(self, response)
        finally:
            response.close()

    async def outcome(self, id: str) -> _Outcome:
        """What became of a stream. Raises SourceFailed if that cannot be found out."""
        response = await self._get(f"/v2/backup/{id}")
        try:
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response)
            async with asyncio.timeout(self.idle_timeout):
                return _Outcome.model_validate_json(await response.content.read(_ANSWER_LIMIT))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SourceFailed(f"the sender does not say whether it sent all of it: {_words(error)}") from error
        finally:
            response.close()

    async def _get(
        self, path: str, query: Mapping[str, str] | None = None, *, within: float | None = None
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(within or self.idle_timeout):
                return await self._session.get(self._url + path, params=query, allow_redirects=False)
        except TimeoutError:
            raise SourceFailed(f"{self._url} does not answer") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise SourceFailed(f"{self._url} is not trusted: {_words(error.certificate_error)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceFailed(f"{self._url} cannot be reached: {_words(error)}") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> SourceFailed:
        """The server's reason, in its words where it has any."""
        try:
            async with asyncio.timeout(self.idle_timeout):
                reason = str(json.loads(await response.content.read(_ANSWER_LIMIT))["error"])
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
            reason = response.reason or ""
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            after = response.headers.get("Retry-After", "")
            return SourceBusy(f"{self._url} is busy: {reason}", float(after) if after.isdecimal() else 0.0)
        if response.status == HTTPStatus.UNAUTHORIZED:
            return SourceFailed(f"{self._url} does not take the token in this peer's backup.token_file")
        if response.status == HTTPStatus.NOT_FOUND:
            return SourceFailed(f"{self._url} knows of no such backup, or no version 2 of the protocol: {reason}")
        return SourceFailed(f"{self._url} refuses ({response.status}): {reason}")


@asynccontextmanager
async def connect(peer: Peer, settings: Settings) -> AsyncIterator[Source]:
    """The peer's backup server, with the token shown on every request. Raises SourceFailed."""
    if peer.backup_url is None:
        raise SourceFailed(f"{peer.id} names no backup server")
    idle = settings.backup.idle_timeout
    try:
        asking = session(
            settings,
            headers={"Connection": "close", **await asyncio.to_thread(bearer, settings.backup)},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=idle),
            version=aiohttp.HttpVersion10,  # the stream as it is, to the end of the connection
            auto_decompress=False,
            read_bufsize=pipe.CHUNK,
            max_field_size=_HEADER_LIMIT,
        )
    except (NoToken, BadCertificate) as error:
        raise SourceFailed(str(error)) from error
    async with asking as opened:
        yield Source(opened, peer.backup_url, idle)


def _offer(headers: Mapping[str, str]) -> Offer:
    try:
        size = headers.get("Manatee-Size-Estimate")
        return Offer(
            driver=headers["Manatee-Driver"],
            snapshot=headers["Manatee-Snapshot"],
            identity=Identity(headers["Manatee-System-Identifier"], headers["Manatee-Postgres-Version"]),
            size=None if size is None else int(size),
            continues=headers.get("Manatee-Continues") == "yes",
            detail={name[len(_DETAIL) :]: headers[name] for name in headers if name.startswith(_DETAIL)},
        )
    except (KeyError, ValueError) as error:
        raise SourceFailed(f"the source does not say what it sends: {error}") from error


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

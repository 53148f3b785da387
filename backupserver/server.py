"""The backup server's HTTP, version 2 of the protocol (design, section 7).

A killed sender closes its socket just like one that has finished, so the end of a stream says nothing. What it was
worth is asked afterwards: `GET /v2/backup/<id>`, with the id from the stream's headers, says `done` with the number of
bytes and their sha256 only if the whole snapshot was sent. (A digest is left out by drivers whose format checks itself,
so that their bytes need not pass through this process.) While PostgreSQL prepares a backup, which may take a
checkpoint's time, the same resource says `preparing`, and silence on the stream means nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import uuid
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from manatee import wal
from manatee.config import Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from manatee.storage import Offer, SendFailed, Sending, Storage, StorageError, localserver, pipe

RETRY_AFTER = 5
"""Seconds after which it is worth asking again when all streams are taken."""
PREPARE_WITHIN = 1800.0
"""Seconds that a sender has for its first byte: a checkpoint of a busy server with much memory takes minutes."""
REMEMBERED = 100
"""Transfers whose outcome can be asked for."""

_OPEN = frozenset({"/ping", "/metrics"})


class ReceiverGone(Exception):
    """The other end closed the stream, or takes no more bytes."""


@dataclass
class Transfer:
    """One stream and what has become of it."""

    id: str
    state: Literal["preparing", "running", "done", "failed"] = "preparing"
    bytes: int = 0
    sha256: str | None = None
    error: str | None = None

    def document(self) -> dict[str, object]:
        return {
            "id": self.id,
            "state": self.state,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "error": self.error,
        }


def read_token(settings: Settings) -> bytes:
    """The token that requests must carry, read anew each time so that it can be changed. Raises OSError."""
    path = settings.backup.token_file
    token = path.read_bytes().strip()
    if not token:
        raise OSError(f"{path} is empty: it must hold the token that the shard's peers share")
    return token


class BackupServer:
    """The requests, and the transfers that are running or were."""

    def __init__(self, settings: Settings, storage: Storage, logger: Logger) -> None:
        self._settings = settings
        self._storage = storage
        self._log = logger
        self._transfers: OrderedDict[str, Transfer] = OrderedDict()
        self._running: dict[str, asyncio.Task[object]] = {}
        self._metrics = _Metrics()

    def application(self) -> web.Application:
        """The routes, for aiohttp's runner."""
        application = web.Application(middlewares=[self._authenticate])
        application.router.add_get("/ping", self._ping)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/v2/backup", self._backup, allow_head=False)
        application.router.add_get("/v2/backup/{id}", self._transfer)
        application.router.add_get("/v2/snapshots", self._snapshots)
        application.router.add_get("/v2/wal", self._wal)
        return application

    async def end_transfers(self) -> None:
        """End the streams that are running; their senders are gone when this returns."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN:
            return await handler(request)
        try:
            expected = read_token(self._settings)
        except OSError as error:
            self._log.error("no request can be answered without a token", error=str(error))
            return _refusal(503, "this server has no token to compare with")
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        given = shown.strip().encode(errors="surrogateescape")
        if not (hmac.compare_digest(given, expected) and scheme.lower() == "bearer"):
            self._metrics.refused.labels("token").inc()
            self._log.warning("refused: wrong or missing token", remote=request.remote, path=request.path)
            return _refusal(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _snapshots(self, _: web.Request) -> web.Response:
        try:
            kept = await self._storage.snapshots()
        except StorageError as error:
            return _refusal(503, str(error))
        listed = [{"name": each.name, "created": each.created, "size": each.size} for each in kept]
        return web.json_response({"driver": self._storage.driver, "snapshots": listed})

    async def _transfer(self, request: web.Request) -> web.Response:
        transfer = self._transfers.get(request.match_info["id"])
        if transfer is None:
            return _refusal(404, "no such backup: it was long ago, or before this server started")
        return web.json_response(transfer.document())

    async def _wal(self, request: web.Request) -> web.Response:
        try:
            timeline = int(request.query["timeline"])
            start, end = Lsn.parse(request.query["from"]), Lsn.parse(request.query["to"])
            if not (timeline > 0 and start <= end):
                raise ValueError("a timeline begins at 1, and a range ends where it begins or after")
        except KeyError as error:
            return _refusal(400, f"{error.args[0]} is missing: expected timeline, from and to")
        except ValueError as error:
            return _refusal(400, str(error))
        try:
            # Files alone do not tell the log from what was in them before: the tail of its last page may be anything.
            async with localserver.connect(self._settings, "digest") as server:
                flushed = await server.flushed()
            if end > flushed:
                return _refusal(404, f"{end} is not held here: the log ends at {flushed}")
            data_dir = self._storage.data_dir
            return web.json_response({"digest": await asyncio.to_thread(wal.digest, data_dir, timeline, start, end)})
        except wal.WalMissing as error:
            return _refusal(404, str(error))
        except (StorageError, wal.WalError) as error:
            return _refusal(503, str(error))

    async def _backup(self, request: web.Request) -> web.StreamResponse:
        if len(self._running) >= self._settings.backup.max_streams:
            self._metrics.refused.labels("busy").inc()
            return _refusal(429, "all streams are taken", {"Retry-After": str(RETRY_AFTER)})
        transfer = Transfer(uuid.uuid4().hex)
        task = asyncio.current_task()
        assert task is not None
        self._running[transfer.id] = task
        self._metrics.streams.set(len(self._running))
        try:
            return await self._stream(request, transfer)
        finally:
            del self._running[transfer.id]
            self._metrics.streams.set(len(self._running))

    async def _stream(self, request: web.Request, transfer: Transfer) -> web.StreamResponse:
        log = self._log.bind(backup=transfer.id, remote=request.remote)
        response: web.StreamResponse | None = None
        try:
            async with self._storage.send(dict(request.query)) as sending:
                self._remember(transfer)
                response = web.StreamResponse(headers=_headers(transfer, sending.offer))
                await response.prepare(request)
                log.info("sending a snapshot", snapshot=sending.offer.snapshot, size=sending.offer.size)
                await self._pump(sending, response, transfer)
                await sending.finished()
            transfer.state = "done"  # before the end of the stream can be seen, so that it can be asked for
            self._metrics.finished.labels("done").inc()
            log.info("snapshot sent", bytes=transfer.bytes)
            with suppress(ConnectionError):
                await response.write_eof()
            return response
        except (StorageError, ReceiverGone) as error:
            if response is None:
                log.warning("cannot send a snapshot", error=str(error))
                self._metrics.refused.labels("unavailable").inc()
                return _refusal(503, str(error))
            self._fail(transfer, str(error), log)
        except asyncio.CancelledError:
            self._fail(transfer, "the receiver went away, or this server was stopped", log)
            raise
        finally:
            if transfer.state != "done" and response is not None and request.transport is not None:
                request.transport.abort()
        return response

    async def _pump(self, sending: Sending, response: web.StreamResponse, transfer: Transfer) -> None:
        """Move the stream from the sender to the socket; never more than a few chunks are held here."""
        idle = self._settings.backup.idle_timeout
        hashed = None if sending.checks_itself else hashlib.sha256()
        patience = PREPARE_WITHIN
        while True:
            try:
                async with asyncio.timeout(patience):
                    chunk = await pipe.read(sending.fd)
            except TimeoutError:
                raise SendFailed(f"the sender gave no byte for {patience:g} s") from None
            if not chunk:
                break
            transfer.state, patience = "running", idle
            if hashed is not None:
                hashed.update(chunk)
            try:
                async with asyncio.timeout(idle):
                    await response.write(chunk)
            except TimeoutError:
                raise ReceiverGone(f"the receiver took no byte for {idle:g} s") from None
            except ConnectionError as error:
                raise ReceiverGone("the receiver went away") from error
            transfer.bytes += len(chunk)
            self._metrics.sent.inc(len(chunk))
        transfer.sha256 = hashed.hexdigest() if hashed is not None else None

    def _remember(self, transfer: Transfer) -> None:
        self._transfers[transfer.id] = transfer
        while len(self._transfers) > REMEMBERED:
            self._transfers.popitem(last=False)

    def _fail(self, transfer: Transfer, reason: str, log: Logger) -> None:
        transfer.state, transfer.error = "failed", reason
        self._metrics.finished.labels("failed").inc()
        log.warning("snapshot not sent", bytes=transfer.bytes, error=reason)


class _Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.streams = Gauge("manatee_backup_streams", "Snapshots being sent now", registry=self._registry)
        self.finished = Counter(
            "manatee_backup_transfers", "Snapshots sent, by outcome", ["outcome"], registry=self._registry
        )
        self.refused = Counter(
            "manatee_backup_refusals", "Requests refused, by reason", ["reason"], registry=self._registry
        )
        self.sent = Counter("manatee_backup_sent_bytes", "Bytes of snapshots sent", registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _headers(transfer: Transfer, offer: Offer) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        "Manatee-Backup": transfer.id,
        "Manatee-Driver": offer.driver,
        "Manatee-Snapshot": offer.snapshot,
        "Manatee-System-Identifier": offer.identity.system_identifier,
        "Manatee-Postgres-Version": offer.identity.major_version,
    }
    if offer.size is not None:
        headers["Manatee-Size-Estimate"] = str(offer.size)
    return headers | {f"Manatee-Detail-{name}": value for name, value in offer.detail.items()}


def _refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": reason}, status=status, headers=headers)

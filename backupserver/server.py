"""The backup server's HTTP, version 2 of the protocol (design, section 7).

A killed sender closes its socket just like one that has finished, so the end of a stream says nothing. What it was
worth is asked afterwards: `GET /v2/backup/<id>`, with the id from the stream's headers, says `done` with the number of
bytes and their sha256 only if the whole snapshot was sent. While PostgreSQL prepares a backup, which may take a
checkpoint's time, the same resource says `preparing`, and silence on the stream means nothing.

A driver whose format checks itself needs no digest; the header `Manatee-Digest` says `none` then. Who asks such a one
by HTTP/1.0 gets the stream as it is, to the end of the connection, so the kernel moves it from the sender's pipe to the
socket and no byte of it is in this process (`backupserver.stream`). Others get it in HTTP/1.1's chunks.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections import OrderedDict
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from backupserver.bandwidth import Bandwidth
from backupserver.metrics import Metrics
from backupserver.stream import Pump, ReceiverGone, Transfer
from manatee import wal
from manatee.config import Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from manatee.storage import Offer, Sending, Storage, StorageError, localserver

RETRY_AFTER = 5
"""Seconds after which it is worth asking again when all streams are taken."""
REMEMBERED = 100
"""Transfers whose outcome can be asked for."""
STOP_WITHIN = 1.0
"""Seconds that requests in progress get when the program is told to stop; transfers get none."""
END_WITHIN = 5.0
"""Seconds that the storage gets for ending what belongs to transfers that are cut short."""
REQUEST_LIMIT = 256 << 10
"""Bytes of a request's first line: a receiver may have many snapshots to name."""

_OPEN = frozenset({"/ping", "/metrics"})


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
        self._running: dict[str, tuple[Transfer, asyncio.Task[web.StreamResponse]]] = {}
        self._bandwidth = Bandwidth(lambda: settings.backup.bandwidth_limit)
        self._metrics = Metrics(self._under_way)

    def runner(self) -> web.AppRunner:
        """Not set up yet; the caller ends the transfers before it cleans it up."""
        # With the connection of a request, its handler ends: a receiver that has gone must stop its sender.
        return web.AppRunner(
            self._application(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=STOP_WITHIN,
            max_line_size=REQUEST_LIMIT,
        )

    def _application(self) -> web.Application:
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
        running = list(self._running.values())
        for transfer, _ in running:
            transfer.gone.set()
        if running:
            await asyncio.wait([task for _, task in running], timeout=END_WITHIN)

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
            self._log.warning("refused: all streams are taken", remote=request.remote, streams=len(self._running))
            return _refusal(429, "all streams are taken", {"Retry-After": str(RETRY_AFTER)})
        transfer = Transfer(uuid.uuid4().hex)
        # A task of its own, never cancelled: the storage ends what belongs to the stream whatever becomes of us.
        task = asyncio.create_task(self._stream(request, transfer))
        self._running[transfer.id] = transfer, task
        task.add_done_callback(lambda _: self._ended(transfer))
        try:
            return await asyncio.shield(task)
        finally:
            transfer.gone.set()

    def _ended(self, transfer: Transfer) -> None:
        del self._running[transfer.id]
        self._metrics.ended(transfer)

    async def _stream(self, request: web.Request, transfer: Transfer) -> web.StreamResponse:
        log = self._log.bind(backup=transfer.id, remote=request.remote)
        idle = self._settings.backup.idle_timeout
        response: web.StreamResponse | None = None
        began = time.monotonic()
        log.info("preparing a snapshot")
        try:
            async with self._storage.send(dict(request.query)) as sending:
                self._remember(transfer)
                transfer.size = sending.offer.size
                response = web.StreamResponse(headers=_headers(transfer, sending))
                response.force_close()
                await response.prepare(request)
                offer = sending.offer
                log.info("sending a snapshot", snapshot=offer.snapshot, size=offer.size, stream=dict(offer.detail))
                await Pump(sending, request, response, transfer, self._bandwidth, idle).run()
                await sending.finished()
                transfer.state = "done"  # before the end of the stream can be seen, so that it can be asked for
                self._metrics.finished.labels("done").inc()
                log.info("snapshot sent", bytes=transfer.bytes, seconds=round(time.monotonic() - began, 1))
                # Before the storage tidies up: the receiver need not wait for that.
                await _end(request, response, idle)
        except (StorageError, ReceiverGone) as error:
            if response is None:
                log.warning("cannot send a snapshot", error=str(error))
                self._metrics.refused.labels("unavailable").inc()
                return _refusal(503, str(error))
            if transfer.state == "done":
                log.warning("what belonged to the snapshot was not tidied up", error=str(error))
            else:
                self._fail(transfer, str(error), log)
        finally:
            if transfer.state != "done" and response is not None and request.transport is not None:
                request.transport.abort()
        return response

    def _under_way(self) -> list[Transfer]:
        return [transfer for transfer, _ in self._running.values()]

    def _remember(self, transfer: Transfer) -> None:
        self._transfers[transfer.id] = transfer
        while len(self._transfers) > REMEMBERED:
            self._transfers.popitem(last=False)

    def _fail(self, transfer: Transfer, reason: str, log: Logger) -> None:
        transfer.state, transfer.error = "failed", reason
        self._metrics.finished.labels("failed").inc()
        log.warning("snapshot not sent", bytes=transfer.bytes, error=reason)


async def _end(request: web.Request, response: web.StreamResponse, within: float) -> None:
    """Let the receiver see that the stream is at its end: without HTTP/1.1's chunks that is the connection's."""
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(within):
            await response.write_eof()
    if request.transport is not None:
        request.transport.close()


def _headers(transfer: Transfer, sending: Sending) -> dict[str, str]:
    offer: Offer = sending.offer
    headers = {
        "Content-Type": "application/octet-stream",
        "Manatee-Backup": transfer.id,
        "Manatee-Driver": offer.driver,
        "Manatee-Snapshot": offer.snapshot,
        "Manatee-System-Identifier": offer.identity.system_identifier,
        "Manatee-Postgres-Version": offer.identity.major_version,
        "Manatee-Digest": "none" if sending.checks_itself else "sha256",
    }
    if offer.size is not None:
        headers["Manatee-Size-Estimate"] = str(offer.size)
    if offer.continues:
        headers["Manatee-Continues"] = "yes"
    return headers | {f"Manatee-Detail-{name}": value for name, value in offer.detail.items()}


def _refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": reason}, status=status, headers=headers)

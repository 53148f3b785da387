"""The sitter's HTTP server: health, state and metrics, for operators, load balancers and Prometheus.

Read-only, without credentials, and without secrets: it answers from the daemon's last report and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from manatee.cluster import Role
from sitter.postgres.causes import CAUSES
from sitter.report import Report

IDLE = 365 * 86400.0
"""Seconds for which a connection may be idle: those of our neighbours are, and mean that we live."""

CHECKS: dict[str, tuple[str, Callable[[Report], bool]]] = {
    "/ping": ("PostgreSQL is healthy", lambda now: now.healthy),
    "/health": ("PostgreSQL is healthy", lambda now: now.healthy),
    "/primary": ("the primary, accepting writes", lambda now: now.writable),
    "/sync": ("the sync, streaming", lambda now: now.role is Role.SYNC and now.ready),
    "/async": ("an async, streaming", lambda now: now.role is Role.ASYNC and now.ready),
    "/replica": ("the sync or an async, streaming", lambda now: now.role in (Role.SYNC, Role.ASYNC) and now.ready),
}
"""What a check asks, in words, and the answer: 200 if so, else 503."""


class StatusServer:
    """Serves what `report` returns, from `start` to `close`."""

    def __init__(self, host: str, port: int, report: Callable[[], Report]) -> None:
        self._address = host, port
        self._report = report
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(report))
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        application = web.Application()
        application.router.add_get("/", self._index)
        application.router.add_get("/state", self._state)
        application.router.add_get("/restore", self._restore)
        application.router.add_get("/metrics", self._metrics)
        for path in CHECKS:
            application.router.add_get(path, self._check)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1, keepalive_timeout=IDLE)
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _index(self, _: web.Request) -> web.Response:
        paths = {path: f"200 if this peer is {what}, else 503" for path, (what, _) in CHECKS.items()}
        paths["/ping"] = paths["/health"] = "200 if PostgreSQL is healthy, else 503"
        paths |= {"/state": "all this sitter knows", "/restore": "the running restore", "/metrics": "for Prometheus"}
        return web.json_response(paths)

    async def _check(self, request: web.Request) -> web.Response:
        now = self._report()
        _, holds = CHECKS[request.path]
        answer: dict[str, object] = {"role": now.role, "generation": now.generation, "healthy": now.healthy}
        answer["reason"] = now.document.get("reason")
        return web.json_response(answer, status=200 if holds(now) else 503)

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(self._report().document)

    async def _restore(self, _: web.Request) -> web.Response:
        return web.json_response({"restore": self._report().restore})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _restoring(restore: Mapping[str, Any]) -> Iterator[Metric]:
    """Of the running or last restore; nothing of bytes before there was one."""
    running = restore.get("state") in ("running", "waiting")
    yield GaugeMetricFamily("manatee_restoring", "A restore is under way.", value=float(running))
    for name, what, key in (
        ("manatee_restore_attempt", "Of the running or last restore.", "attempt"),
        ("manatee_restore_bytes", "Bytes of the snapshot that have come.", "bytes_done"),
        ("manatee_restore_expected_bytes", "Bytes that it has, by the sender's estimate.", "bytes_total"),
        ("manatee_restore_bytes_per_second", "How fast they have been coming lately.", "bytes_per_second"),
    ):
        if restore.get(key) is not None:
            yield GaugeMetricFamily(name, what, value=float(restore[key]))


class _Metrics:
    """The report in Prometheus' terms, made when it is scraped."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        now = self._report()
        role = GaugeMetricFamily("manatee_role", "The role of this peer: 1 for the one it has.", labels=["role"])
        for each in Role:
            role.add_metric([each], float(now.role is each))
        yield role
        for name, what, value in (
            ("manatee_generation", "The generation of the cluster state acted on.", now.generation),
            ("manatee_postgres_up", "PostgreSQL answered the last health check.", now.healthy),
            ("manatee_postgres_writable", "This peer is the primary and accepts writes.", now.writable),
            ("manatee_serving", "PostgreSQL is online with proven data.", now.serving),
            ("manatee_ready", "Serving, and streaming from the upstream the rules give.", now.ready),
            ("manatee_zookeeper_connected", "The ZooKeeper session is connected.", now.session),
            ("manatee_replication_lag_bytes", "WAL of the upstream that is not replayed here.", now.lag_bytes),
            ("manatee_replication_lag_seconds", "Age of the last commit replayed here.", now.lag_seconds),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, what, value=float(value))
        yield from _restoring(now.restore or {})
        downstream = GaugeMetricFamily(
            "manatee_downstream_lag_bytes", "WAL that a peer streaming from here has not flushed.", labels=["peer"]
        )
        for peer, behind in now.downstream_lag_bytes.items():
            downstream.add_metric([peer], float(behind))
        yield downstream
        for name, what, key in (
            ("manatee_settings_wrong", "Settings of PostgreSQL that are not as the sitter told it.", "wrong"),
            ("manatee_settings_pending_restart", "Settings that wait for a restart of PostgreSQL.", "pendingRestart"),
        ):
            yield GaugeMetricFamily(name, what, value=float(len(now.settings.get(key, ()))))
        repairs = float(now.settings.get("repairs", 0))
        yield CounterMetricFamily("manatee_settings_repairs", "Settings that were put right.", value=repairs)
        yield CounterMetricFamily(
            "manatee_postgres_restarts", "Restarts of PostgreSQL after it had died.", value=float(now.restarts)
        )
        yield CounterMetricFamily(
            "manatee_evictions",
            "Peers that were seen dead and removed from the active list.",
            value=float(now.evictions),
        )
        failures = CounterMetricFamily(
            "manatee_postgres_failures", "Times that PostgreSQL died or could not be started.", labels=["cause"]
        )
        failing = GaugeMetricFamily(
            "manatee_postgres_failing", "PostgreSQL is down for this cause, or was a moment ago.", labels=["cause"]
        )
        for cause in CAUSES:
            failures.add_metric([cause], float(now.failures.get(cause, 0)))
            failing.add_metric([cause], float(now.failing == cause))
        yield failures
        yield failing

"""Load balancers and Prometheus believe the status server: it never says 200 for a peer that is not what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest

from manatee.cluster import Role
from sitter.report import Report
from sitter.status import CHECKS, IDLE, StatusServer

HOST, PORT = "127.22.0.2", 5433
HEALTHY = Report(role=Role.SYNC, generation=7, healthy=True, serving=True, ready=True, session=True)

Get = Callable[[str], Awaitable[tuple[int, str]]]


class Told:
    """What the server reports, to be changed by the test."""

    report = HEALTHY


@pytest.fixture
async def get() -> AsyncIterator[Get]:
    server = StatusServer(HOST, PORT, lambda: Told.report)
    await server.start()
    async with aiohttp.ClientSession() as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(f"http://{HOST}:{PORT}{path}") as response:
                return response.status, await response.text()

        yield get
    await server.close()


@pytest.mark.parametrize(
    ("report", "good"),
    [
        (HEALTHY, {"/ping", "/health", "/sync", "/replica"}),
        (replace(HEALTHY, role=Role.ASYNC), {"/ping", "/health", "/async", "/replica"}),
        (replace(HEALTHY, role=Role.PRIMARY, writable=True), {"/ping", "/health", "/primary"}),
        (replace(HEALTHY, role=Role.PRIMARY, writable=False), {"/ping", "/health"}),
        (replace(HEALTHY, ready=False), {"/ping", "/health"}),
        (Report(role=Role.DEPOSED), set()),
        (Report(), set()),
    ],
    ids=["sync", "async", "primary", "read-only primary", "sync that does not stream", "deposed", "starting"],
)
async def test_each_check_answers_for_its_role_alone(get: Get, report: Report, good: set[str]) -> None:
    Told.report = report
    assert {path for path in CHECKS if (await get(path))[0] == 200} == good


async def test_metrics_name_the_role_and_the_lag(get: Get) -> None:
    Told.report = replace(HEALTHY, lag_bytes=4096, lag_seconds=1.5, downstream_lag_bytes={"5e0a09bb": 12})
    _, text = await get("/metrics")
    for line in (
        'manatee_role{role="sync"} 1.0',
        'manatee_role{role="primary"} 0.0',
        "manatee_generation 7.0",
        "manatee_postgres_up 1.0",
        "manatee_replication_lag_bytes 4096.0",
        "manatee_replication_lag_seconds 1.5",
        'manatee_downstream_lag_bytes{peer="5e0a09bb"} 12.0',
    ):
        assert line in text.splitlines()


async def test_what_is_unknown_is_not_a_metric(get: Get) -> None:
    Told.report = Report()
    assert "manatee_replication_lag" not in (await get("/metrics"))[1]


async def test_metrics_show_how_far_a_restore_is(get: Get) -> None:
    _, text = await get("/metrics")
    assert "manatee_restoring 0.0" in text
    assert "manatee_restore_bytes" not in text
    restore = {"state": "running", "attempt": 2, "bytes_done": 5, "bytes_total": 10, "bytes_per_second": None}
    Told.report = replace(HEALTHY, restore=restore)
    _, text = await get("/metrics")
    for line in (
        "manatee_restoring 1.0",
        "manatee_restore_attempt 2.0",
        "manatee_restore_bytes 5.0",
        "manatee_restore_expected_bytes 10.0",
    ):
        assert line in text
    assert "manatee_restore_bytes_per_second" not in text


async def test_settings_that_are_not_as_they_should_be_are_counted(get: Get) -> None:
    found = {"wrong": ["fsync is 'off' by a file, not 'on'"], "pendingRestart": ["a", "b"], "repairs": 3}
    Told.report = replace(HEALTHY, settings=found)
    _, text = await get("/metrics")
    for line in (
        "manatee_settings_wrong 1.0",
        "manatee_settings_pending_restart 2.0",
        "manatee_settings_repairs_total 3.0",
    ):
        assert line in text.splitlines()


async def test_a_neighbour_that_only_listens_is_not_hung_up_on() -> None:
    """It would wonder, once an hour, whether this peer is dead."""
    server = StatusServer(HOST, PORT, lambda: HEALTHY)
    await server.start()
    reader, writer = await asyncio.open_connection(HOST, PORT)
    try:
        runner = server._runner
        assert runner is not None
        assert runner.server is not None
        async with asyncio.timeout(30):
            while not (connected := runner.server.connections):
                await asyncio.sleep(0.01)
        assert [each.keepalive_timeout for each in connected] == [IDLE]
        assert not reader.at_eof()
    finally:
        writer.transport.abort()
        await server.close()

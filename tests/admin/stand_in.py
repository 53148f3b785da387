"""Stands in for a sitter, as `manatee-adm rebuild` meets one: it is in the active list, "restores" when it has no data,
shows how that goes, and says when it is ready. What it is to do wrong stands in a file beside its settings.

    python -m tests.admin.stand_in SETTINGS
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from manatee.cluster import PeerStatus, Role
from manatee.config import Settings, load
from manatee.coordination import Coordination

TOTAL = 4 << 20


class StandIn:
    def __init__(self, settings: Settings, behaviour: Path) -> None:
        self.settings = settings
        self.behaviour = behaviour
        self.restore: dict[str, Any] | None = None
        self.reason = "starting"

    async def run(self) -> None:
        application = web.Application()
        application.router.add_get("/restore", self._restore)
        application.router.add_get("/state", self._state)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, self.settings.peer.ip, self.settings.status_port).start()
        root = self.settings.shard.root
        coordination = Coordination(self.settings.zookeeper, root, structlog.get_logger())
        await coordination.start(within=20)
        await coordination.join(self.settings.identity)
        work = asyncio.create_task(self._work(coordination))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await coordination.close()

    async def _work(self, coordination: Coordination) -> None:
        data = self.settings.storage.data_dir
        while True:
            view = await coordination.read()
            assert view.state is not None
            generation, role = view.state.generation, view.state.role_of(self.settings.identity.id)
            ready = data.exists() and role in (Role.SYNC, Role.ASYNC)
            await coordination.publish(
                PeerStatus(initialized=data.exists(), serving=ready, ready=ready, generation=generation)
            )
            if not data.exists() and role is not Role.DEPOSED:
                await self._copy(data)
            self.reason = f"{role} of generation {generation}"
            await asyncio.sleep(0.05)

    async def _copy(self, data: Path) -> None:
        how = self.behaviour.read_text().strip()
        progress = {"source": "http://127.14.0.2:12345", "attempt": 1, "bytes_total": TOTAL, "error": None}
        for done in range(0, TOTAL + 1, TOTAL // 8):
            self.restore = {**progress, "bytes_done": done, "state": "running"}
            await asyncio.sleep(0.05)
            while how == "stall" and done > TOTAL // 2:
                how = self.behaviour.read_text().strip()
                await asyncio.sleep(0.05)
            if how == "fail" and done > TOTAL // 2:
                self.restore |= {"state": "failed", "error": "no space left on device"}
                await asyncio.sleep(3600)
        (data / "global").mkdir(parents=True)
        (data / "PG_VERSION").write_text("15\n")
        (data / "global" / "pg_control").write_bytes(b"restored")
        self.restore = {**progress, "bytes_done": TOTAL, "state": "done"}

    async def _restore(self, _: web.Request) -> web.Response:
        return web.json_response({"restore": self.restore})

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response({"reason": self.reason})


if __name__ == "__main__":
    path = Path(sys.argv[1])
    asyncio.run(StandIn(load(path), path.with_name("behaviour")).run())

"""What the named cases are told with: who is what, what has changed meanwhile, and that clients noticed nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from demo.shard import LocalPeer, Seen
from manatee.cluster import ClusterState, Peer
from tests.chaos import operator
from tests.chaos.checker import outages
from tests.chaos.ensemble import NODES
from tests.chaos.history import Operation, operations
from tests.chaos.lab import SLOWNESS, Lab, kill
from tests.chaos.rounds import Result, idle, settle, takes_writes
from tests.chaos.topology import Pair, between

PATIENCE = 90.0 * SLOWNESS
"""Seconds for anything to come about: the machine may be busy."""
HESITATION = 2.0 * SLOWNESS
"""Seconds without an acknowledged write that are not an interruption yet: the machine may be busy."""


@dataclass
class Stage:
    """One lab, at the beginning of each case complete and under load."""

    lab: Lab
    result: Result

    # --- Who is what --------------------------------------------------------------------------------------------

    async def state(self) -> ClusterState:
        seen = await self.until(lambda seen: seen.state is not None, "a cluster state")
        assert seen.state is not None
        return seen.state

    async def primary(self) -> LocalPeer:
        return self.of((await self.state()).primary)

    async def sync(self) -> LocalPeer:
        return self.of((await self.state()).sync)

    async def first_async(self) -> LocalPeer:
        return self.of((await self.state()).asyncs[0])

    async def by_role(self, role: str) -> LocalPeer:
        ask = {"primary": self.primary, "sync": self.sync, "async": self.first_async}
        return await ask[role]()

    def of(self, peer: Peer | None) -> LocalPeer:
        assert peer is not None
        return self.lab.peer(peer.id)

    # --- What comes about ---------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[Seen], object], what: str) -> Seen:
        """Wait for it; ShardFailed with what was seen last if it does not come."""
        return await self.lab.wait_for(holds, timeout=PATIENCE, what=what)

    async def generation(self, number: int) -> ClusterState:
        """Wait for this generation, and for no other."""
        seen = await self.until(lambda seen: _state(seen).generation >= number, f"generation {number}")
        assert _state(seen).generation == number, f"generation {_state(seen).generation} was not expected"
        return _state(seen)

    async def complete(self) -> None:
        """All peers are in the chain again; the operator rebuilds who has diverged, and nobody else."""
        await settle(self.lab, self.result)

    async def writable(self) -> None:
        assert await takes_writes(self.lab, time.monotonic() + PATIENCE), "no write is acknowledged"

    async def under_load(self) -> None:
        """Clients write and read, all of what they do."""
        async with asyncio.timeout(PATIENCE):
            while idle(self.lab, operations(self.lab.histories)):
                await asyncio.sleep(0.2)

    async def deposed_or_back(self, peer: LocalPeer) -> None:
        """A former primary is on the deposed list, and off it again by itself or by a rebuild, as an async."""
        await self.complete()
        state = await self.state()
        assert peer.id in [each.id for each in state.asyncs]

    async def deposed_or_back_by_itself(self, peer: LocalPeer, process: float) -> None:
        """The process that was started then says that its peer is deposed, or has taken it off the list already."""
        deadline = time.monotonic() + PATIENCE
        said: dict[str, object] = {}
        while time.monotonic() < deadline:
            said = await operator.ask(peer, "/state") or {}
            if said.get("role") in ("deposed", "async", "unassigned"):
                break
            await asyncio.sleep(0.2)
        else:
            raise AssertionError(f"{self.lab.node(peer)} has not found itself deposed: {said}")
        assert await self.begins(peer) == process
        await self.deposed_or_back(peer)

    async def answers(self, peer: LocalPeer) -> float:
        """Seconds until its sitter answers."""
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while await operator.ask(peer, "/state") is None:
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def leader(self) -> str:
        """ZooKeeper's leader, as soon as there is one."""
        async with asyncio.timeout(PATIENCE):
            while (leader := await self.lab.ensemble.leader()) is None:
                await asyncio.sleep(0.1)
        return leader

    @asynccontextmanager
    async def no_change(self) -> AsyncIterator[None]:
        """Nobody writes the cluster state while this lasts."""
        before = await self.lab.history_names()
        yield
        assert await self.lab.history_names() == before

    @asynccontextmanager
    async def no_interruption(self) -> AsyncIterator[None]:
        """No operation of an ordinary client goes wrong, or waits for long, while this lasts, and some are done."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        await asyncio.sleep(0.5)
        during = [each for each in self._ordinary() if began <= each.began <= ended]
        assert during
        assert [each for each in during if not each.acknowledged] == []
        assert outages(during, longer_than=HESITATION) == []

    def _ordinary(self) -> list[Operation]:
        return [
            each for each in operations(self.lab.histories) if each.kind != "insert" or each.value // 10**9 % 100 < 50
        ]

    # --- What is done -------------------------------------------------------------------------------------------

    async def stop_sitter(self, peer: LocalPeer) -> None:
        self.note(f"the sitter of {self.lab.node(peer)} is stopped")
        await self.lab.supervisor.stop(peer.programs[0])

    async def start_sitter(self, peer: LocalPeer) -> None:
        self.note(f"the sitter of {self.lab.node(peer)} is started")
        await self.lab.supervisor.start(peer.programs[0])

    async def kill_sitter(self, peer: LocalPeer) -> None:
        """It is started again by its service manager."""
        process = self.lab.program(peer.programs[0])
        assert process is not None
        self.note(f"SIGKILL to the sitter of {self.lab.node(peer)}")
        kill([process])

    async def kill_postmaster(self, peer: LocalPeer) -> None:
        process = self.lab.postmaster(peer)
        assert process is not None
        self.note(f"SIGKILL to the postmaster of {self.lab.node(peer)}")
        kill([process])

    async def crash(self, *peers: LocalPeer) -> None:
        self.note(f"SIGKILL to all of {', '.join(map(self.lab.node, peers))}")
        await self.lab.kill_peer(*peers)

    async def boot(self, peer: LocalPeer) -> None:
        self.note(f"{self.lab.node(peer)} boots")
        await self.lab.start_peer(peer)

    @asynccontextmanager
    async def cut_off(self, peer: LocalPeer) -> AsyncIterator[None]:
        """The peer is on a side of its own, with the last client."""
        side = [self.lab.node(peer), self.lab.clients[-1]]
        pairs = between(side, [node for node in self.lab.network.nodes if node not in side])
        self.note(f"{' and '.join(side)} are cut off")
        await self.lab.network.cut(pairs)
        try:
            yield
        finally:
            await self.lab.network.mend(pairs)
            self.note(f"{' and '.join(side)} are back")

    @asynccontextmanager
    async def refused(self, pairs: Sequence[Pair]) -> AsyncIterator[None]:
        """A firewall answers for the second of each pair what the first sends, as if nobody were there."""
        self.note("; ".join(f"{to} refuses what {one} sends" for one, to in pairs))
        await self.lab.network.cut(pairs, "refuse")
        try:
            yield
        finally:
            await self.lab.network.mend(pairs, "refuse")
            self.note("nobody refuses anything any more")

    @asynccontextmanager
    async def death_not_believed(self) -> AsyncIterator[None]:
        """Nobody is evicted while this lasts: the sitters are told so, and read their settings again."""
        ordinary = {peer: peer.settings_file.read_text() for peer in self.lab.peers}
        try:
            for peer, text in ordinary.items():
                peer.settings_file.write_text(text.replace("[sitter]\n", "[sitter]\nevict_dead = false\n"))
            await self._reread(neighbours=False)
            yield
        finally:
            for peer, text in ordinary.items():
                peer.settings_file.write_text(text)
            await self._reread(neighbours=True)

    async def _reread(self, *, neighbours: bool) -> None:
        """SIGHUP to every sitter; until the primary's and the sync's look out for each other, or no longer do."""
        for peer in self.lab.peers:
            if process := self.lab.program(peer.programs[0]):
                process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            for peer in (await self.primary(), await self.sync()):
                while bool((await operator.ask(peer, "/state") or {}).get("neighbour")) is not neighbours:
                    await asyncio.sleep(0.1)

    def evictions(self, since: float) -> Counter[str]:
        """How often each node that lives was evicted since this moment of the monotonic clock."""
        return Counter(
            event.subject for event in self.lab.journal.events if event.kind == "evicted" and event.at >= since
        )

    def seen_dead(self, peer: LocalPeer) -> int:
        """How many peers this one has evicted, by its log."""
        return peer.log("sitter").read_text(errors="replace").count("evicted a dead peer")

    async def zookeeper(self, *, up: bool, nodes: tuple[str, ...] = NODES) -> None:
        self.note(f"{', '.join(nodes)}: {'up' if up else 'down'}")
        for node in nodes:
            await (self.lab.supervisor.start(node) if up else self.lab.supervisor.kill(node))

    async def reap(self, peer: LocalPeer) -> None:
        assert await operator.adm(self.lab, "reap", "-n", peer.settings.identity.zone_id)

    async def begins(self, peer: LocalPeer) -> float:
        """When the sitter's process was started, by the machine's clock: another time means another process."""
        process = self.lab.program(peer.programs[0])
        assert process is not None
        return process.create_time()

    def note(self, text: str) -> None:
        self.lab.journal.note("fault", "case", text)


def _state(seen: Seen) -> ClusterState:
    assert seen.state is not None
    return seen.state

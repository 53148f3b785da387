"""`rebuild`: sets the local peer's data aside and has its sitter restore them from another peer.

The steps are in this order so that it can be interrupted after any of them and run again: stop the sitter, forget what
it remembers of the data, set the data aside, take the peer off the deposed list, start the sitter, watch. What was set
aside is destroyed when the new database streams, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click

from admin import requests, sitters
from admin.main import command
from admin.progress import Display
from admin.rebuilding import Judgement, Look, NoSource, Plan, judge, plan
from admin.shard import Failed, amend, opened, run, state_of
from admin.target import Target
from manatee.cluster import ClusterState, Peer
from manatee.config import Settings
from manatee.coordination import Coordination, CoordinationError, ShardView
from manatee.service import ServiceError, Services, State, services
from manatee.storage import Storage, StorageError, open_storage

PATIENCE = 300.0
"""Seconds without progress until the rebuild is given up; a large database takes long to be made durable."""
SOURCE = 60.0
"""Seconds in which somebody must serve whom the data can come from: a takeover may be under way."""
_GLANCE = 0.5
"""Seconds between two looks at the sitter."""


@command("rebuild")
@click.option("-y", "--ignorePrompts", "yes", is_flag=True, help="Ask nothing.")
@click.option("-f", "--full", is_flag=True, help="Restore everything anew, not only the difference (ZFS).")
@click.option("--force", is_flag=True, help="Rebuild the sync, too, where the shard can spare it.")
@click.option(
    "--patience", type=click.FloatRange(min=1), default=PATIENCE, show_default=True, metavar="SECONDS",
    help="Give up after so long without progress.",
)  # fmt: skip
def rebuild(target: Target, yes: bool, full: bool, force: bool, patience: float) -> None:
    """Rebuild the local peer: set its data aside and restore them from another peer.

    For a deposed peer, or one that cannot follow the shard. Needs the peer's settings file (-c). Interrupted, it can be
    run again and goes on.
    """
    if target.settings is None:
        raise click.UsageError(
            "option is required: --config (or MANATEE_SITTER_CONFIG): rebuild is about the local peer"
        )
    try:
        run(_Rebuild(target, target.settings).run(yes=yes, full=full, force=force, patience=patience))
    except (ServiceError, StorageError) as error:
        raise Failed(f"{error}; run rebuild again to go on") from error
    except KeyboardInterrupt:
        raise Failed("interrupted; run rebuild again to go on") from None


class _Rebuild:
    """One rebuild, from the first question to the last line."""

    def __init__(self, target: Target, settings: Settings) -> None:
        self.target = target
        self.settings = settings
        self.me = settings.identity
        self.sitter = sitters.sitter_url(self.me, settings.status_port)
        self.services: Services = services(settings.service)
        self.storage: Storage = open_storage(settings)
        self.changed = asyncio.Event()

    async def run(self, *, yes: bool, full: bool, force: bool, patience: float) -> None:
        async with opened(self.target, self.changed.set) as shard:
            under_way = await self._under_way()
            if under_way:
                _say("A restore is under way already; going on with it.")
            else:
                state = await self._prepare(shard, yes=yes, force=force)
                await self._make_way(shard, state, full=full, force=force)
            await self._take_off_deposed(shard)
            _say(f"Starting {self.settings.service.sitter}.")
            await self.services.start(self.settings.service.sitter)
            judgement = await self._watch(shard, patience)
        if judgement.verdict == "failed":
            raise Failed(
                f"{judgement.text}; what was set aside is still there; run rebuild again when the cause is gone"
            )
        dropped = await self.storage.drop_isolated(self.settings.storage.keep_isolated)
        if dropped.count:
            _say(f"Destroyed what had been set aside ({dropped.count}).")
        for name, reason in dropped.stay.items():
            _say(f"{name} stays for now, and takes space: {reason}. The sitter tries again to destroy it.")
        _say(f"Rebuild successful: {self.me.label} is {judgement.text}.")

    async def _under_way(self) -> bool:
        """An earlier rebuild was interrupted while the sitter restored."""
        if await self.storage.has_data():
            return False
        if await self.services.state(self.settings.service.sitter) is not State.RUNNING:
            return False
        answer = await sitters.get(f"{self.sitter}/restore")
        restore = answer.get("restore") if answer else None
        return isinstance(restore, dict) and restore.get("state") in ("running", "waiting")

    # --- Before anything is changed -----------------------------------------------------------------------------

    async def _prepare(self, shard: Coordination, *, yes: bool, force: bool) -> ClusterState:
        state, planned = await self._planned(shard, force=force)
        await self._check_sources(planned)
        held = "its data are set aside" if await self.storage.has_data() else "it has no data"
        _say(
            f"Rebuilding {self.me.label} ({self.me.ip}), {planned.role} in {self.target.name}: "
            f"its sitter is stopped, {held}, and it is restored from {_or(planned.sources)}."
        )
        if not yes:
            click.confirm("Go on?", abort=True)
        return state

    async def _planned(self, shard: Coordination, *, force: bool) -> tuple[ClusterState, Plan]:
        """As soon as somebody serves whom the data can come from. Raises Refused, also when nobody does in time."""
        ends, said = time.monotonic() + SOURCE, ""
        while True:
            view = await self._read(shard, ends)
            state = state_of(self.target, view)
            try:
                return state, plan(state, view.active, self.me, force=force)
            except NoSource as nobody:
                if time.monotonic() > ends:
                    raise requests.Refused(f"{nobody}, not within {SOURCE:g} s either: the data stay") from nobody
                if str(nobody) != said:
                    said = str(nobody)
                    _say(f"Waiting up to {ends - time.monotonic():.0f} s: {said}.")
            await self._news(_GLANCE)

    async def _check_sources(self, planned: Plan) -> None:
        """Only a peer whose backup server answers can give anything. Raises Failed."""
        answers = await asyncio.gather(*(sitters.ping(peer, self.settings) for peer in planned.sources))
        if not any(answer is None for answer in answers):
            reasons = "; ".join(f"{p.label}: {a}" for p, a in zip(planned.sources, answers, strict=True))
            raise Failed(f"no backup server answers, so the data stay: {reasons}")

    # --- What changes things ------------------------------------------------------------------------------------

    async def _make_way(self, shard: Coordination, state: ClusterState, *, full: bool, force: bool) -> None:
        _say(f"Stopping {self.settings.service.sitter}.")
        await self.services.stop(self.settings.service.sitter)
        await self._await_absence(shard)
        # While we waited the shard may have moved on: what was allowed then may not be now.
        now = state_of(self.target, await shard.read())
        if now.generation != state.generation or now.role_of(self.me.id) != state.role_of(self.me.id):
            try:
                await self._planned(shard, force=force)
            except requests.Refused:
                await self.services.start(self.settings.service.sitter)
                raise
        if await _listens(self.settings):
            raise Failed(
                f"something still listens on {self.me.ip}:{self.settings.peer.postgres_port} although the sitter is "
                "stopped: a PostgreSQL that is not the sitter's must not lose its data"
            )
        # What is remembered says that the data are proven: it must not outlive them.
        _forget(self.settings.sitter.state_dir / "memory.json")
        isolated = await self.storage.isolate("rebuild", base=not full)
        _say(f"Set the data aside: {isolated}." if isolated else "There are no data to set aside.")

    async def _await_absence(self, shard: Coordination) -> None:
        """The other peers go by the election node: until it is gone they count on this peer. Raises Failed."""
        limit = max(shard.session_timeout, self.settings.zookeeper.session_timeout) * 1.5 + 2.0
        ends = time.monotonic() + limit
        said = False
        while any(each.peer.id == self.me.id for each in (await self._read(shard, ends)).active):
            if time.monotonic() > ends:
                raise Failed(
                    f"{self.me.id} is still in the active list {limit:.0f} s after its sitter was stopped: "
                    "does another sitter run for this peer?"
                )
            if not said:
                _say(f"Waiting up to {limit:.0f} s for its ZooKeeper session to end.")
                said = True
            await self._news(_GLANCE)

    async def _take_off_deposed(self, shard: Coordination) -> None:
        written = await amend(self.target, shard, lambda state, _: requests.undeposed(state, self.me.id))
        if written is not None:
            _say("Took the peer off the deposed list.")

    # --- Watching -----------------------------------------------------------------------------------------------

    async def _watch(self, shard: Coordination, patience: float) -> Judgement:
        """Until the peer is ready, has failed, or `patience` seconds have brought nothing new."""
        with Display() as display:
            last, moved = Judgement("going on", "waiting for the sitter"), time.monotonic()
            while True:
                try:
                    now = judge(await self._look(shard), self.me)
                except (CoordinationError, ServiceError) as error:
                    now = Judgement("going on", str(error), last.done, last.total)
                if now.verdict != "going on":
                    return now
                if (now.text, now.done) != (last.text, last.done):
                    last, moved = now, time.monotonic()
                display.show(now)
                if time.monotonic() - moved > patience:
                    return Judgement("failed", f"no progress for {patience:g} s: {now.text}")
                await self._news(_GLANCE)

    async def _look(self, shard: Coordination) -> Look:
        view, service, restore, said = await asyncio.gather(
            shard.read(),
            self.services.state(self.settings.service.sitter),
            sitters.get(f"{self.sitter}/restore"),
            sitters.get(f"{self.sitter}/state"),
        )
        mine = next((each for each in view.active if each.peer.id == self.me.id), None)
        return Look(
            service=service,
            state=view.state,
            present=mine is not None,
            status=mine.status if mine else None,
            restore=(restore or {}).get("restore"),
            reason=(said or {}).get("reason"),
        )

    async def _read(self, shard: Coordination, ends: float) -> ShardView:
        """Patient with a ZooKeeper that is away for a moment."""
        while True:
            try:
                return await shard.read()
            except CoordinationError:
                if time.monotonic() > ends:
                    raise
                await self._news(_GLANCE)

    async def _news(self, seconds: float) -> None:
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()


def _say(line: str) -> None:
    click.echo(line)


def _or(peers: Iterable[Peer]) -> str:
    return " or ".join(f"{peer.label} ({peer.ip})" for peer in peers)


def _forget(path: Path) -> None:
    """Remove the file durably."""
    try:
        path.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failed(
            f"{path} cannot be removed: {error.strerror}; run rebuild as the user that the sitter runs as"
        ) from error


async def _listens(settings: Settings) -> bool:
    """Whether a server accepts connections where this peer's PostgreSQL would."""
    try:
        async with asyncio.timeout(sitters.DEADLINE):
            _, writer = await asyncio.open_connection(settings.peer.ip, settings.peer.postgres_port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

"""What an operator does, at whatever moment: `manatee-adm`, from the seat.

A command may fail, since it comes at bad moments: what it said is in the timeline. An act returns what was done, in
words, and how it is undone; it raises Inapplicable if there is nobody to do it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

from demo.shard import LocalPeer
from tests.chaos.lab import Inapplicable, Lab, kill

Act = tuple[str, Callable[[], Awaitable[None]]]

PATIENCE = 60.0
"""Seconds for one command."""
_RESTORE = 20_000_000
"""Bits a second at which a restore that is to be cut is sent: else it would be over too soon."""


async def adm(lab: Lab, *words: str, patience: float = PATIENCE) -> bool:
    """Run one command; whether it succeeded."""
    lab.journal.note("operator", "seat", f"manatee-adm {' '.join(words)}")
    succeeded, said = await lab.adm(*words, patience=patience)
    lab.journal.note("operator", "seat", f"manatee-adm {words[0]}: {said or ('done' if succeeded else 'failed')}")
    return succeeded


async def freeze(lab: Lab, target: str, chance: int) -> Act:
    lab.begin(adm(lab, "freeze", "-r", "chaos"))

    async def heal() -> None:
        await unfreeze(lab)

    return "an operator freezes the shard", heal


async def unfreeze(lab: Lab) -> None:
    """Again and again, since ZooKeeper may be away, and a freeze be still under way."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if lab.idle and lab.last_state is not None and not lab.last_state.frozen:
            return
        if lab.last_state is not None and lab.last_state.frozen:
            await adm(lab, "unfreeze", patience=10.0)
        await asyncio.sleep(0.5)


async def promote(lab: Lab, target: str, chance: int) -> Act:
    state = lab.last_state
    peer = None if state is None else state.sync if target == "sync" else state.asyncs[0] if state.asyncs else None
    if peer is None:
        raise Inapplicable(f"there is no {target}")
    index = ("-i", "0") if target == "async" else ()
    lab.begin(adm(lab, "promote", "-y", "-n", peer.zone_id, "-r", target, *index))
    return f"an operator promotes the {target}", _nothing


async def rebuild(lab: Lab, target: str, chance: int) -> Act:
    peer = _async(lab)
    lab.begin(rebuilt(lab, peer))
    return f"an operator rebuilds {lab.node(peer)}", _nothing


async def rebuilt(lab: Lab, peer: LocalPeer) -> bool:
    """Rebuild a peer; its sitter runs afterwards, whatever the command has come to."""
    try:
        return await adm(lab, "rebuild", "-y", "-c", str(peer.settings_file), "--patience", "40", patience=150.0)
    finally:
        await lab.supervisor.start(peer.programs[0])


async def cut_restore(lab: Lab, target: str, chance: int) -> Act:
    """The backup servers that could be sending are killed in the middle, or the peer that receives is."""
    peer = _async(lab)
    others = [each for each in lab.peers if each is not peer]
    for other in others:
        await lab.network.slow(lab.node(other), _RESTORE)
    try:
        lab.begin(rebuilt(lab, peer))
        if not await restoring(peer, within=20.0):
            raise Inapplicable(f"no restore of {lab.node(peer)} has begun")
        if chance % 2:
            victims, said = lab.all_of(peer), f"{lab.node(peer)} is killed"
        else:
            servers = [lab.program(other.programs[1]) for other in others]
            victims, said = [each for each in servers if each is not None], "the backup servers are killed"
        kill(victims)
    finally:
        for other in others:
            await lab.network.hasten(lab.node(other), _RESTORE)
    return f"an operator rebuilds {lab.node(peer)}; {said} in the middle of the restore", _nothing


async def reap(lab: Lab, target: str, chance: int) -> Act:
    state = lab.last_state
    if state is None or not state.deposed:
        raise Inapplicable("nobody is deposed")
    peer = state.deposed[chance % len(state.deposed)]
    lab.begin(adm(lab, "reap", "-n", peer.zone_id))
    return f"an operator reaps {lab.node(lab.peer(peer.id))}", _nothing


async def restoring(peer: LocalPeer, *, within: float) -> bool:
    """Wait until some data of a restore have arrived."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        restore = (await ask(peer, "/restore") or {}).get("restore") or {}
        if restore.get("state") == "running" and restore.get("bytes_done", 0) > 1_000_000:
            return True
        await asyncio.sleep(0.02)
    return False


async def ask(peer: LocalPeer, path: str) -> dict[str, Any] | None:
    """What the sitter's HTTP server answers, or None."""

    def get() -> dict[str, Any] | None:
        url = f"http://{peer.ip}:{peer.settings.status_port}{path}"
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as response:
            document: dict[str, Any] = json.loads(response.read())
            return document
        return None

    return await asyncio.to_thread(get)


def _async(lab: Lab) -> LocalPeer:
    state = lab.last_state
    if state is None or not state.asyncs:
        raise Inapplicable("there is no async")
    return lab.peer(state.asyncs[0].id)


async def _nothing() -> None:
    pass

"""Asks the peers' sitters and backup servers over HTTP: all at once, each within a deadline, whatever hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from manatee.address import postgres_address
from manatee.cluster import Peer
from manatee.config import Settings

DEADLINE = 3.0
"""Seconds for one answer."""

State = Mapping[str, Any]
"""What one sitter's `/state` answered."""
States = Mapping[str, State]
"""What the sitters' `/state` answered, by the peer's id; a sitter that did not answer is missing."""


def sitter_url(peer: Peer, port: int | None = None) -> str:
    """Where a peer's sitter listens: one above PostgreSQL's port, unless its settings say otherwise (`port`).

    Raises ValueError for a peer whose pgUrl is not one.
    """
    host = f"[{peer.ip}]" if ":" in peer.ip else peer.ip
    return f"http://{host}:{port or postgres_address(peer.pg_url).port + 1}"


async def states(peers: Iterable[Peer], local: Settings | None = None) -> States:
    """What each peer's sitter says; `local` are the settings of the local peer, if they are known."""
    asked = list(peers)
    answers = await asyncio.gather(*(_state(peer, local) for peer in asked))
    return {peer.id: answer for peer, answer in zip(asked, answers, strict=True) if answer is not None}


async def _state(peer: Peer, local: Settings | None) -> dict[str, Any] | None:
    ours = local is not None and local.identity.id == peer.id
    try:
        return await get(f"{sitter_url(peer, local.status_port if local and ours else None)}/state")
    except ValueError:
        return None


async def get(url: str) -> dict[str, Any] | None:
    """The JSON object that is served there; None if there is none."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE)) as session,
            session.get(url) as answer,
        ):
            document = await answer.json()
    except (TimeoutError, aiohttp.ClientError, ValueError):
        return None
    return document if isinstance(document, dict) else None


async def ping(peer: Peer, local: Settings) -> str | None:
    """Why the peer's backup server cannot be counted on by the local peer; None if it answers."""
    import aiohttp

    from manatee.peerserver import session as encrypted_session

    if peer.backup_url is None:
        return "it has no backup server"
    try:
        async with (
            encrypted_session(local, timeout=aiohttp.ClientTimeout(total=DEADLINE)) as session,
            session.get(f"{peer.backup_url}/ping") as answer,
        ):
            return None if answer.status == 200 else f"{peer.backup_url} answers with status {answer.status}"
    except TimeoutError:
        return f"{peer.backup_url} does not answer within {DEADLINE:g} s"
    except aiohttp.ClientError as error:
        return f"{peer.backup_url}: {error}"

"""`zk-state`, `zk-active`: what stands in ZooKeeper, as it stands there, on one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import click
import structlog

from admin.main import command
from admin.shard import ARRIVAL, Failed, hasty, opened, run
from admin.target import Target
from manatee.session import Session


@command("zk-state")
def zk_state(target: Target) -> None:
    """Print the cluster state, valid or not: the document that all peers configure themselves by."""
    click.echo(run(_state(target)))


@command("zk-active")
def zk_active(target: Target) -> None:
    """Print the peers that are connected to ZooKeeper, in the order in which they came.

    A peer that has just been restarted may be there twice, for its old session and its new one. `says` is what the
    peer says of itself; null for a Manatee 2 peer.
    """
    click.echo(run(_active(target)))


@contextlib.asynccontextmanager
async def _session(target: Target) -> AsyncIterator[Session]:
    async with opened(target):
        session = Session(hasty(target.zookeeper), structlog.get_logger(), lambda _: None)
        try:
            await session.start(within=ARRIVAL)
            yield session
        finally:
            await session.close()


async def _state(target: Target) -> str:
    async with _session(target) as session:
        node = await session.node(f"{target.root}/state")
    if node is None:
        raise Failed(f"the shard {target.name} is not set up: it has no cluster state yet")
    document = _decoded(node.data)
    return node.data.decode(errors="replace") if isinstance(document, str) else json.dumps(document, ensure_ascii=False)


async def _active(target: Target) -> str:
    async with _session(target) as session:
        names = await session.children(f"{target.root}/election") or []
        names.sort(key=lambda name: name.rsplit("-", 1)[-1])
        nodes = await asyncio.gather(*(session.node(f"{target.root}/election/{name}") for name in names))
        said = await asyncio.gather(*(session.node(f"{target.root}/status/{name}") for name in names))
    rows = []
    for name, node, words in zip(names, nodes, said, strict=True):
        if node is not None:
            held = _decoded(node.data)
            rows.append(
                {
                    "id": name.rsplit("-", 1)[0],
                    **(held if isinstance(held, dict) else {"content": held}),
                    "node": name,
                    "says": _decoded(words.data) if words and words.owner == node.owner else None,
                }
            )
    return json.dumps(rows, ensure_ascii=False)


def _decoded(data: bytes) -> object:
    """The JSON document, or the text of what is none."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")

"""`freeze`, `unfreeze`, `promote`, `clear-promote`, `reap`: what an operator asks of a shard."""

from __future__ import annotations

import asyncio
import contextlib
import time

import click

from admin import requests
from admin.main import command
from admin.observed import Observations
from admin.postgres import observe
from admin.problems import problems
from admin.shard import Failed, amend, opened, run, state_of
from admin.target import Target
from manatee.cluster import ClusterState
from manatee.coordination import Coordination, Unreachable

_AWAY = 15.0
"""Seconds after a request's end in which ZooKeeper may be away before the command gives up."""
_LOOK = 1.0
"""Seconds after which the shard is looked at again even if ZooKeeper has not told of a change."""


@command("freeze")
@click.option("-r", "--reason", required=True, help="Why: for whoever finds the shard frozen.")
def freeze(target: Target, reason: str) -> None:
    """Freeze the shard: it declares no new generation, whatever fails, until it is unfrozen."""

    async def work() -> None:
        async with opened(target) as shard:
            await amend(target, shard, lambda state, _: requests.freeze(state, reason, time.time()))

    run(work())
    click.echo("Frozen.")


@command("unfreeze")
def unfreeze(target: Target) -> None:
    """Unfreeze the shard."""

    async def work() -> None:
        async with opened(target) as shard:
            await amend(target, shard, lambda state, _: requests.unfreeze(state))

    run(work())
    click.echo("Unfrozen.")


@command("reap")
@click.option("-n", "--zonename", "name", metavar="NAME", help="The peer: zone name, label or id.")
@click.option("-i", "--ip", metavar="IP", help="The peer, by its address.")
@click.option("--force", is_flag=True, help="Also one that is connected: it joins again with the data that it has.")
def reap(target: Target, name: str | None, ip: str | None, force: bool) -> None:
    """Take a deposed peer that is gone for good off the deposed list; the local one (-c) if none is named.

    Only for a peer that will never be back: one that is to come back needs `manatee-adm rebuild` there. Its data,
    wherever they are, stay as they are.
    """
    if name and ip:
        raise click.UsageError("--zonename and --ip name the same thing: give one of them")
    wanted = name or ip or (target.settings.identity.id if target.settings else None)
    if wanted is None:
        raise click.UsageError("option is required: --zonename or --ip (or --config, for the local peer)")

    async def work() -> ClusterState:
        async with opened(target) as shard:
            before = state_of(target, await shard.read())
            await amend(target, shard, lambda state, view: requests.reap(state, view.active, wanted, force=force))
            return before

    peer = requests.find_peer(run(work()), wanted)
    click.echo(f"Reaped: {peer.label} ({peer.ip}) is no longer deposed in {target.name}.")


@command("clear-promote")
def clear_promote(target: Target) -> None:
    """Withdraw the request to promote a peer that nobody has acted on. It has no effect once it has expired."""

    async def work() -> None:
        async with opened(target) as shard:
            await amend(target, shard, lambda state, _: requests.clear_promote(state))

    run(work())
    click.echo("Cleared the request to promote.")


@command("promote")
@click.option("-n", "--zonename", "name", required=True, metavar="NAME", help="The peer: zone name, label or id.")
@click.option("-r", "--role", required=True, type=click.Choice(["sync", "async"]), help="The role it has now.")
@click.option("-i", "--asyncIndex", "async_index", type=int, help="Its place among the asyncs, from 0.")
@click.option("-y", "--ignorePrompts", "yes", is_flag=True, help="Ask nothing.")
def promote(target: Target, name: str, role: str, async_index: int | None, yes: bool) -> None:
    """Move a peer one place up in the chain: an async before the one above it, the first async to sync, the sync to
    primary.

    The role it has now must be given, and for an async among several its index: the shard may have moved on since you
    looked. Promoting the sync makes the primary step down: it comes back as the last async by itself, if nothing
    diverged. The command waits for the outcome.
    """
    try:
        run(_promote(target, name, role, async_index, yes))
    except KeyboardInterrupt:
        raise Failed("interrupted: what was asked for stays asked for until it expires") from None


async def _promote(target: Target, name: str, role: str, async_index: int | None, yes: bool) -> None:
    changed = asyncio.Event()
    async with opened(target, changed.set) as shard:
        view = await shard.read()
        state = state_of(target, view)
        requests.promote(state, view.active, name, role=role, async_index=async_index, now=time.time())
        if not yes:
            _confirm(state, await observe(state.assigned, target.own_settings), name, role)
        asked = await amend(
            target,
            shard,
            lambda state, view: requests.promote(
                state, view.active, name, role=role, async_index=async_index, now=time.time()
            ),
        )
        assert asked is not None
        assert asked.promote is not None
        click.echo(f"Asked for the promotion of {name}, until {asked.promote.expire_time}.")
        outcome = await _await_outcome(target, shard, asked, changed)
    if outcome.verdict != "done":
        raise Failed(outcome.text)
    click.echo(f"Promoted: {outcome.text}.")


def _confirm(state: ClusterState, seen: Observations, name: str, role: str) -> None:
    for problem in problems(state, seen):
        click.echo(problem)
    consequence = {
        "sync": f"The primary {state.primary.label} hands over and comes back as the last async, if it can.",
        "async": "Writes wait for a moment if it becomes the sync.",
    }
    click.echo(f"This moves {name} ({role}) one place up. {consequence[role]}")
    click.confirm("Go on?", abort=True)


async def _await_outcome(
    target: Target, shard: Coordination, asked: ClusterState, changed: asyncio.Event
) -> requests.Outcome:
    """Look until the request has come to something. It expires, so this ends."""
    assert asked.promote is not None
    while True:
        changed.clear()
        try:
            found = requests.outcome(asked, state_of(target, await shard.read()), time.time())
        except Unreachable as error:
            if time.time() > asked.promote.expires() + _AWAY:
                return requests.Outcome("failed", f"what has become of the request is not known: {error}")
        else:
            if found.verdict != "pending":
                return found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await changed.wait()

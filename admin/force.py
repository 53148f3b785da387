"""`force-primary`: break glass. An operator says whose data are the shard's, where no rule can go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from admin import sitters
from admin.forcing import Candidate, candidates, check_stuck, chosen, forced
from admin.inspection import ask
from admin.main import command
from admin.postgres import observe
from admin.shard import Failed, opened, run, written
from admin.standing import Holding, standstill, told
from admin.target import Target
from manatee.cluster import ClusterState, Peer
from manatee.coordination import Coordination, CoordinationError, HistoryEntry, ShardView

OPENING = 60.0
"""Seconds in which the forced primary is watched until it accepts writes."""
_GLANCE = 0.5


@command("force-primary")
@click.option("-n", "--zonename", "name", metavar="NAME", help="The peer to go on with: zone name, label or id.")
@click.option("-r", "--reason", help="Why: it stays in the shard's history.")
@click.option("--accept-loss", metavar="SHARD", help="The shard's name, instead of typing it when asked. For scripts.")
def force_primary(target: Target, name: str | None, reason: str | None, accept_loss: str | None) -> None:
    """Break glass: make one peer the primary by your word alone, where the shard cannot go on by itself.

    Without -n, says who holds what and what would be lost with each peer, and changes nothing. With it, the same, then
    asks for the shard's name and declares a generation in which the data of that peer are the shard's. WHAT OTHERS
    HAVE BEYOND THEM IS GIVEN UP, acknowledged or not. The others follow that peer, or have to be rebuilt.

    Refused while the primary lives or a takeover is possible. Whoever is absent must not run: you vouch for that.
    docs/runbook.md walks through it.
    """
    if name and not reason:
        raise click.UsageError("option is required: --reason, for whoever reads the history")
    if accept_loss not in (None, target.name):
        raise Failed(f'"{accept_loss}" is not the name of this shard, {target.name}: nothing was changed')
    try:
        run(_force(target, name, reason or "", accepted=accept_loss is not None))
    except KeyboardInterrupt:
        raise Failed("interrupted; if the generation was declared already, it stays: see manatee-adm history") from None


@dataclass(frozen=True)
class _Picture:
    """What is known of the shard at one moment."""

    view: ShardView
    """Where ZooKeeper holds no state, with the last one of the history in its place, if that is legible."""
    history: Sequence[HistoryEntry]
    held: Sequence[Holding]
    candidates: Sequence[Candidate]


async def _force(target: Target, name: str | None, reason: str, *, accepted: bool) -> None:
    async with opened(target) as shard:
        picture = await _look(target, shard)
        _show(picture)
        if name is None:
            raise Failed(
                "nothing was changed: to go on with the data of one of them, name it with -n and say why with -r"
            )
        who = chosen(picture.candidates, name)
        new = forced(picture.view, picture.held, picture.history, who.holding, now=time.time(), reason=reason)
        _announce(picture, who, new)
        if not accepted:
            _confirm(target)
        # What was shown must still be so: somebody may have come back while the question stood.
        again = await _look(target, shard)
        if again.view.version != picture.view.version:
            raise Failed("the shard's state has changed meanwhile: nothing was written, look again")
        who = chosen(again.candidates, who.holding.peer.id)
        new = forced(again.view, again.held, again.history, who.holding, now=time.time(), reason=reason)
        if not await written(shard, new, again.view.version):
            raise Failed("the shard's state has changed meanwhile: nothing was written, look again")
        click.echo(f"Declared generation {new.generation}: {new.primary.label} is primary by your word.")
        await _watch(target, shard, new)


async def _look(target: Target, shard: Coordination) -> _Picture:
    """Raises Refused if the shard goes on, or could, without an operator's word."""
    view, history = await shard.read(), await shard.history()
    if view.state is None:
        view = replace(view, state=next((entry.state for entry in reversed(history) if entry.state), None))
    held = await ask(view, target)
    seen = await observe((one.peer for one in held), target.own_settings)
    check_stuck(view, held, seen)
    return _Picture(view, history, held, candidates(view, held))


def _show(picture: _Picture) -> None:
    """Why nobody goes on, who holds what, and what would be lost with each."""
    if picture.view.state_problem:
        click.echo(f"The cluster state does not validate: {picture.view.state_problem}.")
    why = standstill(picture.view, picture.held).why
    writing = next((one.label for one in picture.held if one.writable), None)
    stands = f"{writing} is open for writes still, but" if writing else "No write is acknowledged"
    click.echo(f"{stands}: {why}.\n")
    for one in picture.held:
        click.echo(told(one))
    click.echo()
    for each in picture.candidates:
        click.echo(f'with the data of "{each.holding.label}" would be lost: {each.lost}')
    if not picture.candidates:
        raise Failed("nobody can be forced: no peer with a database of this shard has a sitter that answers")
    click.echo()


def _announce(picture: _Picture, who: Candidate, new: ClusterState) -> None:
    """What is about to be written, and what the operator vouches for."""
    click.echo(f"Generation {new.generation} would be declared, with the data of {who.holding.label}:")
    followers = [f"sync {new.sync.label}"] if new.sync else ["nobody beside it: it takes writes alone, frozen"]
    followers += [f"async {peer.label}" for peer in new.asyncs] + [f"deposed {peer.label}" for peer in new.deposed]
    click.echo(f"primary {new.primary.label}, {', '.join(followers)}.")
    click.echo(f"What is lost: {who.lost}.")
    if absent := [one.peer for one in picture.held if not one.present and one is not who.holding]:
        click.echo(
            f"You vouch for it that nothing of Manatee or PostgreSQL runs on {_places(absent)}: together they could "
            "still acknowledge commits, which would be lost."
        )


def _places(peers: Sequence[Peer]) -> str:
    return " and ".join(f"{peer.label} ({peer.ip})" for peer in peers)


def _confirm(target: Target) -> None:
    typed = click.prompt(f"Type the shard's name ({target.name}) to do it", default="", show_default=False)
    if typed.strip() != target.name:
        raise Failed(f'"{typed}" is not the name of this shard, {target.name}: nothing was changed')


async def _watch(target: Target, shard: Coordination, new: ClusterState) -> None:
    """Until the forced primary accepts writes; raises Failed if that takes too long."""
    ends, said = time.monotonic() + OPENING, ""
    while True:
        says = (await sitters.states([new.primary], target.settings)).get(new.primary.id)
        if says and says.get("postgres", {}).get("writable") and says.get("generation", 0) >= new.generation:
            break
        news = _words(says)
        if news != said:
            said = news
            click.echo(f"{new.primary.label}: {said}")
        if time.monotonic() > ends:
            raise Failed(f"declared, but {new.primary.label} does not accept writes after {OPENING:g} s: {said}")
        await asyncio.sleep(_GLANCE)
    click.echo(f"{new.primary.label} accepts writes.")
    try:
        state = (await shard.read()).state
    except CoordinationError:
        return
    if state is not None and state.one_node_write_mode:
        click.echo(
            "It is alone, in one-node-write mode: every commit is on one disk. When another peer is there: "
            "manatee-adm unfreeze."
        )


def _words(says: sitters.State | None) -> str:
    if says is None:
        return "its sitter does not answer"
    waiting = says.get("waitingFor")
    return f"{says.get('reason')}" + (f"; waits for {waiting}" if waiting else "")

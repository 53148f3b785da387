"""`set-onwm`, `state-backfill`: commands of Manatee 2 that would break a promise here. They say what to do instead.

They exist so that a procedure written for Manatee 2 ends with a sentence, and not with a shard in pieces.
"""

from __future__ import annotations

import click

from admin.main import command
from admin.requests import Refused
from admin.shard import Failed, opened, run, state_of
from admin.target import Target
from manatee.cluster import ClusterState

ENTER = (
    "one-node-write mode cannot be switched on in a shard that has peers: its primary would acknowledge what nobody "
    "else has. A shard is in it when it was set up with `singleton = true` under [shard] in its only peer's settings"
)
LEAVE = (
    "one-node-write mode is left by a new generation, which the primary declares itself: take `singleton` out of the "
    "settings file of {primary} and restart its sitter, start the other peers, then `manatee-adm unfreeze`"
)


@command("set-onwm")
@click.option("-m", "--mode", required=True, type=click.Choice(["on", "off"]), help="The mode that is wanted.")
@click.option("-y", "--ignorePrompts", "yes", is_flag=True, expose_value=False, help="Accepted, and of no effect.")
def set_onwm(target: Target, mode: str) -> None:
    """Say how to enter (-m on) or leave (-m off) one-node-write mode; nothing is changed.

    Manatee 2 changed the flag in the cluster state. Here the mode changes only together with a new generation, behind a
    seal: a flag changed in place would let a primary acknowledge commits alone, or wait for a sync that was never
    told. The exit status is 0 if the shard is in the wanted mode already.
    """

    async def work() -> ClusterState:
        async with opened(target) as shard:
            return state_of(target, await shard.read())

    click.echo(one_node_write_mode(run(work()), on=mode == "on"))


def one_node_write_mode(state: ClusterState, *, on: bool) -> str:
    """That the shard is in the mode already; raises Failed with the way to it if it is not."""
    if state.one_node_write_mode is on:
        return f"The shard is in {'one-node-write' if on else 'normal'} mode already."
    primary = f"{state.primary.label} ({state.primary.ip})"
    raise Failed(ENTER if on else LEAVE.format(primary=primary))


@command("state-backfill")
def state_backfill(target: Target) -> None:
    """Say what to do about a shard without a cluster state; nothing is changed.

    Manatee 2 made a state up from who happened to be connected, for shards of Manatee 1. Connection order says nothing
    about who holds what.
    """

    async def work() -> None:
        async with opened(target) as shard:
            if (await shard.read()).version is not None:
                raise Refused("the shard has a cluster state: there is nothing to fill in")

    run(work())
    raise Failed(
        "the shard has no cluster state. If it never had one, start two peers without data: they set it up. If "
        "ZooKeeper has lost it, restore ZooKeeper's data; where there is no backup, `manatee-adm force-primary` writes "
        "a state from what the peers remember"
    )

"""`restart-setup`: a new shard whose first primary went away before it had created the database.

Until `cluster` holds the identity of the shard's database there is no data anywhere, and nothing can be lost: the same
generation is written once more with another peer as the one that creates it. Whoever began may have finished a database
that nobody recorded; it is not the shard's, and the sitters refuse it when its peer comes back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from admin.main import command
from admin.requests import Refused
from admin.shard import Failed, opened, run, state_of, written
from admin.target import Target
from manatee.cluster import Cluster, ClusterState, Peer, written_time
from manatee.coordination import HistoryEntry, ShardView


@command("restart-setup")
@click.option("-y", "--ignorePrompts", "yes", is_flag=True, help="Ask nothing.")
def restart_setup(target: Target, yes: bool) -> None:
    """Give the set-up of a shard to another peer, when the one that was to create the database is gone.

    Refused as soon as the database exists, or while that peer is connected. At least two peers without data must be
    connected (one in one-node-write mode); the first of them creates the database.
    """
    run(_restart(target, yes))


async def _restart(target: Target, yes: bool) -> None:
    async with opened(target) as shard:
        view = await shard.read()
        state = state_of(target, view)
        new, cluster = handed_over(state, view, await shard.history(), time.time())
        before = next((peer.label for peer in state.assigned if view.cluster and peer.id == view.cluster.by), "nobody")
        click.echo(
            f"{before} has not created the database of {target.name}; {new.primary.label} will, as the primary, "
            f"with {', '.join(peer.label for peer in new.assigned[1:]) or 'nobody'} behind it."
        )
        if not yes:
            click.confirm("Go on?", abort=True)
        if not await written(shard, new, view.version, cluster=cluster):
            raise Failed("the shard has changed meanwhile: nothing was written, look again")
    click.echo(
        f"Handed over to {new.primary.label}. Before {before} comes back, remove what is in its storage.directory."
    )


def handed_over(
    state: ClusterState, view: ShardView, history: Sequence[HistoryEntry], now: float
) -> tuple[ClusterState, Cluster]:
    """The state and the `cluster` with which the set-up begins again; raises Refused where it must not."""
    cluster = view.cluster
    if view.cluster_problem:
        raise Refused(f"the shard's identity in ZooKeeper does not validate: {view.cluster_problem}")
    if cluster is None or cluster.system_identifier is not None or state.generation != 1:
        raise Refused("the shard is set up: its database exists")
    if any(entry.generation is None or entry.generation > 1 for entry in history):
        raise Refused("the history tells of more than a set-up: ZooKeeper is older than the shard")
    _check_nobody_has_data(view, cluster)
    empty = [each.peer for each in view.active]
    needed = 1 if state.one_node_write_mode else 2
    if len(empty) < needed:
        raise Refused(f"{len(empty)} peers without data are connected, {needed} are needed: start their sitters")
    return _begun_by(state, empty), cluster.replace(by=empty[0].id, created=written_time(now))


def _check_nobody_has_data(view: ShardView, cluster: Cluster) -> None:
    for each in view.active:
        if each.peer.id == cluster.by:
            raise Refused(f"{each.peer.label} is there, and creates the database: wait, or stop its sitter first")
        if not each.promises_status or (each.status and each.status.initialized):
            raise Refused(f"{each.peer.label} has a database: the shard was set up once")
        if each.status is None:
            raise Refused(f"{each.peer.label} has not said yet whether it has data: try again in a moment")
        if each.status.generation > 1:
            raise Refused(
                f"{each.peer.label} has acted on generation {each.status.generation}: ZooKeeper has forgotten"
            )


def _begun_by(state: ClusterState, peers: Sequence[Peer]) -> ClusterState:
    first, *others = peers
    alone = state.one_node_write_mode
    return state.replace(
        primary=first, sync=None if alone else others[0], asyncs=() if alone else others[1:], deposed=()
    )

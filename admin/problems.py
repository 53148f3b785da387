"""What is wrong with a shard, as `show`, `pg-status` and `verify` report it.

Pure: the cluster state and what the servers said in, sentences out. Monitoring matches these sentences, so they stay as
they are. An *error* means that service is down, a *warning* that it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from admin.observed import NOT_ASKED, Observations, Observed, borne_by, downstream
from manatee.cluster import ClusterState, Peer

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def problems(state: ClusterState, seen: Observations) -> list[Finding]:
    """The errors, then the warnings."""
    found = findings(state, seen)
    return [f for f in found if f.level == "error"] + [f for f in found if f.level == "warning"]


def findings(state: ClusterState, seen: Observations) -> list[Finding]:
    """Everything that was looked at, in the order of the chain, what is well included."""
    return list(_look(state, seen))


def _look(state: ClusterState, seen: Observations) -> Iterator[Finding]:
    primary = seen.get(state.primary.id, NOT_ASKED)
    yield _answers("primary", state.primary, primary)
    for peer in state.assigned:
        if names := ", ".join(seen.get(peer.id, NOT_ASKED).pending_restart):
            yield Finding("warning", f'peer "{peer.label}": changed settings wait for a restart of PostgreSQL: {names}')
    if state.one_node_write_mode or state.sync is None:
        yield from _singleton(state)
        return
    sync = seen.get(state.sync.id, NOT_ASKED)
    yield _answers("sync", state.sync, sync)
    yield Finding("warning", "cluster has a deposed peer") if state.deposed else Finding("ok", "no peer is deposed")
    if not state.asyncs:
        yield Finding("warning", "cluster has no async peers")
    if not sync.online:
        return  # nothing that is said about replication now would be news
    known = (*state.assigned, *state.deposed)
    chain = state.assigned
    for upstream, follower in pairwise(chain):
        is_primary = upstream is state.primary
        yield from _replication(
            upstream, follower, seen.get(upstream.id, NOT_ASKED), known, kind="sync" if is_primary else "async"
        )


def _answers(role: str, peer: Peer, seen: Observed) -> Finding:
    if seen.online:
        return Finding("ok", f'{role} "{peer.label}" answers queries')
    return Finding("error", f"cannot query postgres on {role}")


def _singleton(state: ClusterState) -> Iterator[Finding]:
    count = len(state.assigned) + len(state.deposed)
    if count > 1:
        yield Finding("warning", f"found {count} peers in singleton mode")
    else:
        yield Finding("ok", "one peer, in singleton mode")


def _replication(
    upstream: Peer, follower: Peer, seen: Observed, known: tuple[Peer, ...], *, kind: Literal["sync", "async"]
) -> Iterator[Finding]:
    """How the replication from `upstream` stands: what is wrong with the sync's link is an error, else a warning."""
    level: Level = "error" if kind == "sync" else "warning"
    row = downstream(seen.walsenders, follower, known)
    if row is None:
        yield Finding(level, f'peer "{upstream.label}": downstream replication peer not connected')
        return
    settled = True
    bearer = borne_by(row, known)
    if bearer is None or bearer.id != follower.id:
        settled = False
        found = bearer.ip if bearer else row.address or row.application_name
        yield Finding(
            level, f'peer "{upstream.label}": expected downstream peer to be "{follower.ip}", but found "{found}"'
        )
    if row.state != "streaming":
        settled = False
        yield Finding(
            level,
            f'peer "{upstream.label}": downstream replication not yet established '
            f'(expected state "streaming", found "{row.state}")',
        )
    if not settled:
        return
    if row.sync_state != kind:
        yield Finding(
            level,
            f'peer "{upstream.label}": expected downstream replication to be "{kind}", but found "{row.sync_state}"',
        )
    else:
        yield Finding("ok", f'"{follower.label}" streams from "{upstream.label}" ({kind})')

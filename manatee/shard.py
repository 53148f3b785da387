"""What ZooKeeper holds about a shard, as it is read: who is present, the cluster state, what became of it before.

Other peers and operators write there too, so nothing is taken for granted: what cannot be read is shown with the
reason, and never taken for something that is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from manatee.cluster import BadDocument, Cluster, ClusterState, Peer, PeerStatus
from manatee.session import Node

_SEQUENTIAL = re.compile(r"(.+)-(\d{10})", re.DOTALL)
_IDENTITY = ("ip", "zoneId", "pgUrl", "backupUrl")


class Layout:
    """Where a shard's nodes are."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.state = f"{root}/state"
        self.cluster = f"{root}/cluster"
        self.election = f"{root}/election"
        self.history = f"{root}/history"
        self.status = f"{root}/status"

    @property
    def parents(self) -> tuple[str, ...]:
        """Those that hold other nodes: whoever joins creates them."""
        return (self.election, self.history, self.status)


@dataclass(frozen=True)
class Active:
    """A present peer: the newest election node of its id."""

    node: str
    """Its name in `election`."""
    peer: Peer
    promises_status: bool
    """False for a Manatee 2 peer."""
    status: PeerStatus | None
    """What it says of itself; None if it has not said anything yet, or not legibly."""
    session: int = 0
    """The session that the node belongs to."""


@dataclass(frozen=True)
class ShardView:
    """What ZooKeeper holds about the shard, all of it at one moment."""

    state: ClusterState | None
    state_problem: str | None
    """The path of the bad field of a state that does not validate, and what is wrong with it; `state` is None then."""
    version: int | None
    """Of the node `state`; None if there is none."""
    cluster: Cluster | None
    cluster_problem: str | None
    """As for the state: a `cluster` that exists but cannot be read is not a missing one."""
    has_history: bool
    active: tuple[Active, ...]
    """In the order in which they became active."""
    unreadable: tuple[tuple[str, str], ...]
    """Children of `election` that are not peers, and why. They stop every Manatee 2 peer."""
    joined: str | None
    """The name of our own election node, if it belongs to our present session."""


@dataclass(frozen=True)
class HistoryEntry:
    """A cluster state that was written once."""

    name: str
    """`<generation>-<sequence>`, or `0-<sequence>` if an operator's tool wrote it."""
    time: float
    """When, in seconds since the epoch."""
    generation: int | None
    """As the state says, not the name."""
    state: ClusterState | None
    problem: str | None
    """Why `state` is None."""


def peer_id(name: str) -> str | None:
    """Whose election node it is: all but the sequence. The id may itself hold dashes."""
    match = _SEQUENTIAL.fullmatch(name)
    return match[1] if match else None


def sequence(name: str) -> tuple[int, str]:
    """Sorts the children of `election` and `history` by their age; what is not numbered comes first."""
    match = _SEQUENTIAL.fullmatch(name)
    return (int(match[2]), name) if match else (-1, name)


def active(name: str, data: bytes, session: int = 0) -> Active:
    """The peer of an election node, by its identity alone; raises BadDocument if it is none."""
    id = peer_id(name)
    if id is None:
        raise BadDocument("name: expected a peer's id, a dash and ten digits")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BadDocument(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDocument("document: expected an object")
    identity = {key: document[key] for key in _IDENTITY if key in document}
    return Active(name, Peer.of({"id": id, **identity}), document.get("status") is True, None, session)


def newest(found: Iterable[Active]) -> list[Active]:
    """One for each id, the newest, in order: an old session that has not expired counts no more."""
    last = {one.peer.id: one for one in found}
    return sorted(last.values(), key=lambda one: sequence(one.node))


def entry(name: str, node: Node) -> HistoryEntry:
    try:
        state = ClusterState.parse(node.data)
    except BadDocument as error:
        return HistoryEntry(name, node.created, _generation(node.data), None, str(error))
    return HistoryEntry(name, node.created, state.generation, state, None)


def _generation(data: bytes) -> int | None:
    """Of a state that does not validate, if that much can be read."""
    try:
        generation = json.loads(data)["generation"]
    except (ValueError, KeyError, TypeError):
        return None
    return generation if type(generation) is int else None

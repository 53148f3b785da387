"""The shard in ZooKeeper: who is present, what the cluster state is, and writing it in one transaction.

The layout under the shard's path is the wire format that Manatee 2 and its clients read: `election/<id>-<sequence>`
(ephemeral), `state`, `history/<generation>-<sequence>`; `status/<election node>` (ephemeral) and `cluster` are ours.

What it promises:

- `read` answers with what was true together at one moment; after any later change `on_change` is called. What has not
  changed is not asked for again: an idle shard costs no requests.
- `write_state` writes the state at the version that was read, with its history entry, or nothing at all. Of a write
  whose answer was lost we know nothing until it is settled (`write_open`, `settle`).
- An election node counts as ours only if it belongs to our present session.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from kazoo.exceptions import NodeExistsError, NoNodeError

from manatee.cluster import BadDocument, Cluster, ClusterState, Peer, PeerStatus, Wire, election_data
from manatee.config import ZooKeeper
from manatee.log import Logger
from manatee.session import (
    Conflict,
    CoordinationError,
    Node,
    NoSuchShard,
    OutcomeUnknown,
    Session,
    Unreachable,
    check,
    create,
    delete,
    refusals,
    write,
)
from manatee.shard import Active, HistoryEntry, Layout, ShardView, active, entry, newest, peer_id, sequence
from manatee.statewriter import StateWriter
from manatee.watched import Look, Watched, together

__all__ = [
    "Active",
    "Conflict",
    "Coordination",
    "CoordinationError",
    "HistoryEntry",
    "NoSuchShard",
    "OutcomeUnknown",
    "ShardView",
    "Unreachable",
]

_BATCH = 100
"""History entries asked for at once."""

_Document = TypeVar("_Document", bound=Wire)


class Coordination:
    """This process's part in one shard, over one ZooKeeper session.

    `on_change` is called in the event loop when what was read is no longer so, once until the next `read`, and
    whenever the connection comes or goes. It means no more than "look again".

    Every call but `start`, `close` and the properties needs a connection, and raises Unreachable at once without one,
    or when no answer comes within `settings.request_timeout`.
    """

    def __init__(
        self, settings: ZooKeeper, root: str, log: Logger, on_change: Callable[[], None] | None = None
    ) -> None:
        self.root = root
        self._layout = Layout(root)
        self._settings = settings
        self._log = log
        self._on_change = on_change
        self._session = Session(settings, log, self._event)
        self._watched = Watched(self._session)
        self._writer = StateWriter(self._session, self._layout)
        self._told = False
        self._complained: set[tuple[str, int]] = set()
        self._entered: tuple[str, int | None] | None = None
        """The id that was joined as, or tried to, and the session that did."""
        self._mine: tuple[str, int] | None = None
        """Our election node, and the session that it belongs to; found by `read` if the answer to `join` was lost."""
        self._published: tuple[str, bytes] | None = None
        self._cluster_version: int | None = None

    # The session ---------------------------------------------------------------------------------------------------

    async def start(self, *, within: float | None = None) -> None:
        """Begin connecting, and go on until `close`; that ZooKeeper is down is no error.

        With `within`, wait that many seconds for the connection, and raise Unreachable if there is none.
        """
        await self._session.start(within=within)

    async def close(self) -> None:
        """End the session, and with it our nodes in `election` and `status`, at once if ZooKeeper can be reached."""
        await self._session.close()

    @property
    def connected(self) -> bool:
        return self._session.connected

    @property
    def disconnected_for(self) -> float:
        """Seconds since the session was last known to be alive, by our own clock; 0 while connected."""
        return self._session.disconnected_for

    @property
    def session_id(self) -> int | None:
        return self._session.id

    @property
    def session_timeout(self) -> float:
        """Seconds, as granted by the server once connected."""
        return self._session.timeout

    # Reading -------------------------------------------------------------------------------------------------------

    async def read(self) -> ShardView:
        """The shard as it is now, from memory as far as it is known to be unchanged."""
        self._told = False
        if not self._session.connected:
            raise self._session.unreachable()
        limit = self._settings.request_timeout
        try:
            with refusals(f"read {self.root}"):
                async with asyncio.timeout(limit):
                    return await self._watched.look(self._view)
        except TimeoutError:
            raise Unreachable(f"{self.root} in ZooKeeper could not be read within {limit:g} s") from None

    async def _view(self, look: Look) -> ShardView:
        names = sorted(await look.children(self._layout.election) or (), key=sequence)
        # History has no watch of its own children: they are written together with the state, and `_event` knows it.
        state, cluster, history, *elected = await together(
            *(look.node(path) for path in (self._layout.state, self._layout.cluster, self._layout.history)),
            *(look.fixed(f"{self._layout.election}/{name}") for name in names),
        )
        present = {name: node for name, node in zip(names, elected, strict=True) if node is not None}
        found, unreadable = self._peers(present)
        peers = newest(found)
        promised = [one.node for one in peers if one.promises_status]
        said = await together(*(look.node(f"{self._layout.status}/{name}") for name in promised))
        statuses = {
            name: self._parse(PeerStatus, f"{self._layout.status}/{name}", node)[0]
            for name, node in zip(promised, said, strict=True)
            if node is not None and node.owner == present[name].owner
        }
        parsed, problem = self._parse(ClusterState, self._layout.state, state)
        identity, identity_problem = self._parse(Cluster, self._layout.cluster, cluster)
        self._cluster_version = cluster.version if cluster else None
        session = self._session.id
        ours = [one.node for one in found if present[one.node].owner == session]
        if ours and session is not None:
            self._mine = (ours[-1], session)
        return ShardView(
            state=parsed,
            state_problem=problem,
            version=state.version if state else None,
            cluster=identity,
            cluster_problem=identity_problem,
            has_history=history is not None and history.children > 0,
            active=tuple(replace(one, status=statuses.get(one.node)) for one in peers),
            unreadable=unreadable,
            joined=ours[-1] if ours else None,
        )

    def _peers(self, present: dict[str, Node]) -> tuple[list[Active], tuple[tuple[str, str], ...]]:
        """The peers among the election nodes, in order, and what is there besides."""
        found, unreadable = [], []
        for name, node in present.items():
            try:
                found.append(active(name, node.data, node.owner))
            except BadDocument as error:
                unreadable.append((name, str(error)))
                self._complain(f"{self._layout.election}/{name}", node, str(error))
        return found, tuple(unreadable)

    def _parse(self, model: type[_Document], path: str, node: Node | None) -> tuple[_Document | None, str | None]:
        if node is None:
            return None, None
        try:
            return model.parse(node.data), None
        except BadDocument as error:
            self._complain(path, node, str(error))
            return None, str(error)

    def _complain(self, path: str, node: Node, problem: str) -> None:
        """Once for each time it was written."""
        if (path, node.change) not in self._complained:
            self._complained.add((path, node.change))
            self._log.error("a node in ZooKeeper is not what it should be", path=path, problem=problem)

    def _event(self, path: str | None) -> None:
        if path is None:
            self._told = False
        else:
            self._watched.forget(path)
            if path == self._layout.state:
                self._watched.forget(self._layout.history)
        if self._on_change is not None and not self._told:
            self._told = True
            self._on_change()

    # Taking part ---------------------------------------------------------------------------------------------------

    async def join(self, peer: Peer) -> None:
        """Enter the active list as `peer`, unless this session is in it already. Makes the shard's paths."""
        with refusals("join the shard"):
            await self._session.make(*self._layout.parents)
            session = self._session.id
            self._entered = (peer.id, session)
            mine = await self._own(peer.id)
            if not mine:
                if self._mine is not None and self._mine[1] == session:
                    self._log.warning(
                        "removed from the active list by another peer, which has seen this one dead: joining again",
                        node=self._mine[0],
                    )
                data = json.dumps(election_data(peer), ensure_ascii=False).encode()
                made = await self._session.commit(
                    create(f"{self._layout.election}/{peer.id}-", data, ephemeral=True, sequential=True)
                )
                mine = [str(made[0]).rsplit("/", 1)[1]]
            node = await self._session.node(f"{self._layout.election}/{mine[-1]}")
        if session is None or node is None or node.owner != session:
            raise Unreachable("the ZooKeeper session ended while joining: join again")
        if self._mine != (mine[-1], session):
            self._log.info("joined", node=mine[-1], session=f"{session:#x}")
        self._mine = (mine[-1], session)

    async def publish(self, status: PeerStatus) -> None:
        """Say this of us to the other peers; nothing is sent if it is what was said last.

        Raises CoordinationError if this session has not joined.
        """
        name = self._joined()
        content = status.content()
        if self._published == (name, content):
            return
        path = f"{self._layout.status}/{name}"
        again = self._published is not None and self._published[0] == name
        self._published = None
        # A status without an election node would stay for as long as the session: it is written beside one, or not.
        beside = check(f"{self._layout.election}/{name}", -1)
        with refusals("publish this peer's status"):
            try:
                first = write(path, content) if again else create(path, content, ephemeral=True)
                await self._session.commit(beside, first)
            except NoNodeError:
                await self._session.commit(beside, create(path, content, ephemeral=True))
            except NodeExistsError:
                await self._session.commit(beside, write(path, content))
        self._published = (name, content)

    async def resign(self) -> None:
        """Leave the active list; returns when our status and our election node are gone. Calling it again is no error.

        Raises Unreachable or OutcomeUnknown when that is not certain.
        """
        if self._entered is None or self._entered[1] != self._session.id:
            return  # the session that had joined has ended, and its nodes with it
        self._mine = None  # should the answer be lost: a node that is gone then was not removed by somebody else
        with refusals("leave the shard"):
            for name in await self._own(self._entered[0]):
                status, node = f"{self._layout.status}/{name}", f"{self._layout.election}/{name}"
                try:
                    await self._session.commit(delete(status), delete(node))  # a handover waits for it
                except NoNodeError:
                    for path in (status, node):
                        with contextlib.suppress(NoNodeError):
                            await self._session.commit(delete(path))
                self._log.info("resigned", node=name)
        self._entered = self._published = None

    async def evict(self, node: str) -> None:
        """Remove this election node of another peer, which is dead, and its status. That it is gone is no error.

        Raises Unreachable if it was not sent, OutcomeUnknown if the answer is missing.
        """
        status, election = f"{self._layout.status}/{node}", f"{self._layout.election}/{node}"
        with refusals("evict a peer"):
            try:
                await self._session.commit(delete(election), delete(status))
            except NoNodeError:
                with contextlib.suppress(NoNodeError):
                    await self._session.commit(delete(election))  # it had no status yet

    def _joined(self) -> str:
        if self._mine is None or self._mine[1] != self._session.id:
            raise CoordinationError("this session has not joined the shard")
        return self._mine[0]

    async def _own(self, id: str) -> list[str]:
        """The election nodes of that id that belong to our session, oldest first; one, unless an answer was lost."""
        await self._session.catch_up(self._layout.election)
        children = sorted(await self._session.children(self._layout.election) or (), key=sequence)
        names = [name for name in children if peer_id(name) == id]
        nodes = await together(*(self._session.node(f"{self._layout.election}/{name}") for name in names))
        return [name for name, node in zip(names, nodes, strict=True) if node and node.owner == self._session.id]

    # Writing the state ---------------------------------------------------------------------------------------------

    @property
    def write_open(self) -> bool:
        """A write of the state may have landed, or may still land, and it is not known."""
        return self._writer.open

    def assume_open(self) -> None:
        """After a restart: a write of the former process may still land."""
        self._writer.assume_open()

    async def write_state(
        self,
        new: ClusterState,
        *,
        version: int | None,
        cluster: Cluster | None = None,
        over_cluster: bool = False,
        history_prefix: int | None = None,
    ) -> None:
        """In one transaction: the state over `version` (None: where there is none), its history entry, and `cluster`.

        `cluster` is created, or with `over_cluster` written over the version last read. The history entry is named by
        the new generation, or by `history_prefix` (0 for an operator's tool).

        Raises Conflict if the state is no longer at that version, Unreachable if nothing was sent, OutcomeUnknown if
        it was and the answer is missing, after which `write_open` is true; CoordinationError if it already was.
        """
        over = self._cluster_version if over_cluster else None
        await self._writer.write(
            new, version=version, cluster=cluster, cluster_version=over, history_prefix=history_prefix
        )

    async def settle(self) -> None:
        """Make certain that no write of ours can land any more; afterwards `write_open` is false.

        Raises Unreachable or OutcomeUnknown when it is still open; CoordinationError if the state does not validate.
        """
        await self._writer.settle()

    async def complete_cluster(self, cluster: Cluster) -> None:
        """Write `cluster` over the version last read, or where there was none.

        Raises Conflict if it has changed since; OutcomeUnknown does no harm: read, and write again if need be.
        """
        version, content = self._cluster_version, cluster.content()
        with refusals("write the shard's identity"):
            await self._session.commit(
                create(self._layout.cluster, content)
                if version is None
                else write(self._layout.cluster, content, version)
            )

    # For operators -------------------------------------------------------------------------------------------------

    async def history(self) -> list[HistoryEntry]:
        """Every cluster state that was ever written, oldest first."""
        with refusals("read the history"):
            names = sorted(await self._session.children(self._layout.history) or (), key=sequence)
            entries = []
            for start in range(0, len(names), _BATCH):
                batch = names[start : start + _BATCH]
                nodes = await together(*(self._session.node(f"{self._layout.history}/{name}") for name in batch))
                entries += [entry(name, node) for name, node in zip(batch, nodes, strict=True) if node is not None]
        return entries

    async def shards(self) -> list[str]:
        """The names of the shards beside this one, and of this one if it exists."""
        parent = self.root.rsplit("/", 1)[0] or "/"
        with refusals(f"list {parent}"):
            return sorted(await self._session.children(parent) or ())

    async def require_shard(self) -> None:
        """Raises NoSuchShard, with the names of those that exist, unless ZooKeeper knows this one."""
        with refusals(f"read {self.root}"):
            if await self._session.node(self.root) is not None:
                return
        parent, name = self.root.rsplit("/", 1)
        known = ", ".join(await self.shards()) or "none"
        raise NoSuchShard(f'unknown shard "{name}": ZooKeeper has in {parent or "/"}: {known}')

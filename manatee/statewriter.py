"""Writing the cluster state: one transaction, and certainty about it even when its answer is lost.

The state is written over the version that was read, together with its history entry, or not at all. A write whose
answer is missing may have landed, and may still land: it is *open*, and nothing else is written until it is settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError

from manatee.cluster import BadDocument, Cluster, ClusterState
from manatee.session import (
    Conflict,
    CoordinationError,
    Node,
    OutcomeUnknown,
    Session,
    Unreachable,
    check,
    create,
    refusals,
    write,
)
from manatee.shard import Layout


@dataclass(frozen=True)
class _OpenWrite:
    """A write of the state that may still land."""

    version: int | None
    """What it was written over: a version of `state`, or None where there was none."""
    known: bool
    """False after a restart: it may have been written over any version."""


class StateWriter:
    """Writes the state of one shard."""

    def __init__(self, session: Session, layout: Layout) -> None:
        self._session = session
        self._layout = layout
        self._open: _OpenWrite | None = None

    @property
    def open(self) -> bool:
        """A write of the state may have landed, or may still land, and it is not known."""
        return self._open is not None

    def assume_open(self) -> None:
        """After a restart: a write of the former process may still land."""
        self._open = self._open or _OpenWrite(None, known=False)

    async def write(
        self,
        new: ClusterState,
        *,
        version: int | None,
        cluster: Cluster | None = None,
        cluster_version: int | None = None,
        history_prefix: int | None = None,
    ) -> None:
        """In one transaction: the state over `version` (None: where there is none), its history entry, and `cluster`
        where there is none, or over `cluster_version`.

        The history entry is named by the new generation, or by `history_prefix` (0 for an operator's tool).

        Raises Conflict if the state is no longer at that version, Unreachable if nothing was sent, OutcomeUnknown if
        it was and the answer is missing, after which `write_open` is true; CoordinationError if it already was.
        """
        if self._open is not None:
            raise CoordinationError("an earlier write of the cluster state is not settled yet")
        prefix = new.generation if history_prefix is None else history_prefix
        operations = [
            *await self._over(version, new.content()),
            create(f"{self._layout.history}/{prefix}-", new.content(), sequential=True),
        ]
        if cluster is not None:
            path, content = self._layout.cluster, cluster.content()
            operations.append(
                create(path, content) if cluster_version is None else write(path, content, cluster_version)
            )
        self._open = _OpenWrite(version, known=True)
        try:
            with refusals("write the cluster state"):
                await self._session.commit(*operations)
        except OutcomeUnknown:
            raise
        except CoordinationError as error:
            self._open = None
            if isinstance(error.__cause__, NoNodeError):
                await self._session.make(*self._layout.parents)  # a shard without `history` would be refused for ever
            raise
        self._open = None

    async def _over(self, version: int | None, content: bytes) -> tuple[Any, ...]:
        """What writes `state` over a version of it, or where there is none.

        A version that is not there cannot be made to move on. The version of the shard's own node stands in for it:
        `settle` moves that one, and a creation that comes later fails.
        """
        if version is not None:
            return (write(self._layout.state, content, version),)
        try:
            with refusals("create the cluster state"):
                await self._session.make(*self._layout.parents)
                root = await self._session.node(self._layout.root)
        except OutcomeUnknown as error:  # of a path: the state itself was not sent
            raise Unreachable(str(error)) from error
        if root is None:
            raise Conflict(f"{self._layout.root} has just been removed")
        return (check(self._layout.root, root.version), create(self._layout.state, content))

    async def settle(self) -> None:
        """Make certain that no write of ours can land any more; afterwards `write_open` is false.

        Either the state has moved past the version that was written over, or the same content is written again over
        the version read, which can only succeed if the other did not land, and then that one cannot.

        Raises Unreachable or OutcomeUnknown when it is still open; CoordinationError if the state does not validate.
        """
        while self._open is not None:
            with refusals("settle a write of the cluster state"):
                await self._session.catch_up(self._layout.state)
                node = await self._session.node(self._layout.state)
                if self._passed(self._open, node):
                    break
                try:
                    await self._write_again(node)
                    break
                except (BadVersionError, NodeExistsError, NoNodeError):
                    # Somebody has written meanwhile, perhaps we; or `history` is missing.
                    await self._session.make(*self._layout.parents)
        self._open = None

    @staticmethod
    def _passed(open_write: _OpenWrite, node: Node | None) -> bool:
        if not open_write.known:
            return False
        if open_write.version is None:
            return node is not None
        return node is None or node.version > open_write.version

    async def _write_again(self, node: Node | None) -> None:
        if node is None:
            root = await self._session.node(self._layout.root)
            if root is not None:
                await self._session.commit(write(self._layout.root, root.data, root.version))
            return
        try:
            generation = ClusterState.parse(node.data).generation
        except BadDocument as error:
            raise CoordinationError(
                f"a write cannot be settled: the cluster state does not validate: {error}"
            ) from error
        await self._session.commit(
            write(self._layout.state, node.data, node.version),
            create(f"{self._layout.history}/{generation}-", node.data, sequential=True),
        )

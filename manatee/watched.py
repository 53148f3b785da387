"""Reading several nodes of ZooKeeper so that they go together, and none of them twice while it has not changed.

Every node is read with a watch and remembered until the watch fires. The session hands events and answers over in the
order in which the server sent them, and the server tells of a change before it shows what the change made. So when all
of what was read is still remembered after the last answer, it was all true together at that moment; if some of it
has changed meanwhile, only that is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from manatee.session import Node, Session

T = TypeVar("T")

_Key = tuple[str, str]


class _Pending:
    """Stands for an answer that is being waited for; an event that removes it makes the answer an old one."""


class Watched:
    """What is known of the nodes of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._epoch = session.epoch
        self._known: dict[_Key, object] = {}
        self._last: tuple[object, object] | None = None
        """What was read last, and what came of it; None once any of it has changed."""

    def forget(self, path: str) -> None:
        """It has changed."""
        self._last = None
        self._known.pop(("node", path), None)
        self._known.pop(("children", path), None)

    async def look(self, reading: Callable[[Look], Awaitable[T]]) -> T:
        """The result of `reading`, from what was true together; it is called again until that is so.

        While nothing has changed it is the very result of the last time. Raises what the session's reads raise. The
        caller sets the deadline.
        """
        while True:
            if self._epoch != self._session.epoch:  # no watch outlives its connection
                self._epoch = self._session.epoch
                self._known.clear()
                self._last = None
            if self._last is not None and self._last[0] == reading:
                return cast(T, self._last[1])
            look = Look(self._session, self._known)
            result = await reading(look)
            if self._epoch == self._session.epoch and all(key in self._known for key in look.used):
                for key in self._known.keys() - look.used:
                    del self._known[key]
                self._last = reading, result
                return result


class Look:
    """One reading of several nodes."""

    def __init__(self, session: Session, known: dict[_Key, object]) -> None:
        self.used: set[_Key] = set()
        self._session = session
        self._known = known

    async def node(self, path: str) -> Node | None:
        return await self._get(("node", path), lambda: self._session.node(path, watch=True))

    async def fixed(self, path: str) -> Node | None:
        """A node whose content never changes and whose parent's children are watched: it needs no watch of its own."""
        return await self._get(("node", path), lambda: self._session.node(path))

    async def children(self, path: str) -> list[str] | None:
        return await self._get(("children", path), lambda: self._session.children(path, watch=True))

    async def _get(self, key: _Key, fetch: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self.used.add(key)
        if key in self._known and not isinstance(self._known[key], _Pending):
            return cast(T, self._known[key])
        pending = self._known[key] = _Pending()
        try:
            answer = await fetch()
        except BaseException:
            if self._known.get(key) is pending:
                del self._known[key]
            raise
        if self._known.get(key) is pending:
            self._known[key] = answer
        return answer


async def together(*reads: Coroutine[Any, Any, T]) -> list[T]:
    """All of them at once, in their order; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

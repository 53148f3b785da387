"""The shard in ZooKeeper as a command sees it: opened within seconds, read afresh, changed in one transaction.

Whatever goes wrong ends the command with one line that says what to do (`Failed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import click
import structlog

from admin.requests import Refused
from admin.target import Target
from manatee.cluster import Cluster, ClusterState
from manatee.config import ZooKeeper
from manatee.coordination import Conflict, Coordination, CoordinationError, OutcomeUnknown, ShardView

Result = TypeVar("Result")

ARRIVAL = 3.0
"""Seconds for ZooKeeper to be there."""
ANSWER = 2.5
"""Seconds for each of its answers, and for the session's end."""
_ATTEMPTS = 20


class Failed(click.ClickException):
    """A command that ends here; its message is all that the operator sees."""

    def format_message(self) -> str:
        return " ".join(str(self.message).split())

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        click.echo(f"manatee-adm: {self.format_message()}", err=True)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine; its errors become `Failed`."""
    # What the libraries below would log is either said by the command itself or of no interest to an operator.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        return asyncio.run(work)
    except (CoordinationError, Refused) as error:
        raise Failed(str(error)) from error


def hasty(settings: ZooKeeper) -> ZooKeeper:
    """The settings for somebody who waits in front of a terminal."""
    return settings.model_copy(update={"request_timeout": min(ANSWER, settings.request_timeout)})


@contextlib.asynccontextmanager
async def opened(target: Target, on_change: Callable[[], None] | None = None) -> AsyncIterator[Coordination]:
    """The shard's place in ZooKeeper, its session ended when left. Raises CoordinationError, also for no such shard."""
    coordination = Coordination(hasty(target.zookeeper), target.root, structlog.get_logger(), on_change)
    try:
        await coordination.start(within=ARRIVAL)
        await coordination.require_shard()
        yield coordination
    finally:
        await coordination.close()


def state_of(target: Target, view: ShardView) -> ClusterState:
    """The state that was read; raises Failed where there is none, or none that can be believed."""
    if view.state_problem is not None:
        raise Failed(f"the cluster state of {target.name} does not validate: {view.state_problem}")
    if view.state is None:
        raise Failed(f"the shard {target.name} is not set up: it has no cluster state yet")
    return view.state


async def amend(
    target: Target, coordination: Coordination, change: Callable[[ClusterState, ShardView], ClusterState | None]
) -> ClusterState | None:
    """Change the shard's state in one transaction, starting from a fresh read until nobody else was faster.

    `change` is given what was read and answers with the new state, or None if there is nothing to do. Returns what was
    written. Raises Refused, Failed, CoordinationError.
    """
    for _ in range(_ATTEMPTS):
        view = await coordination.read()
        state = state_of(target, view)
        new = change(state, view)
        if new is None:
            return None
        assert new.generation == state.generation  # generations are the sitters' to declare
        if await written(coordination, new, view.version):
            return new
    raise Failed(f"the state of {target.name} changed {_ATTEMPTS} times while it was being changed here: try again")


async def written(
    coordination: Coordination, new: ClusterState, version: int | None, *, cluster: Cluster | None = None
) -> bool:
    """Write the state over the version that was read (None: there was none); False if that is no longer the state's.

    With `cluster`, write that over the one that was read, in the same transaction.
    """
    try:
        await coordination.write_state(
            new, version=version, cluster=cluster, over_cluster=cluster is not None, history_prefix=0
        )
    except Conflict:
        return False
    except OutcomeUnknown as unknown:
        return await _landed(coordination, new, unknown)
    return True


async def _landed(coordination: Coordination, new: ClusterState, unknown: OutcomeUnknown) -> bool:
    """Whether a write whose answer was lost has been done; raises the loss again if that cannot be found out."""
    try:
        await coordination.settle()
        view = await coordination.read()
    except CoordinationError as error:
        raise unknown from error
    return view.state is not None and view.state.document() == new.document()

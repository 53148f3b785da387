"""When the world stops misbehaving: what goes on by itself, until nothing changes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.model.parts import NAMES, Step, World, with_peer
from tests.model.promises import can_acknowledge, check
from tests.model.sitter import settle
from tests.model.wishes import wish
from tests.model.world import start, steps

BY_ITSELF = (
    *("flow", "acknowledge", "write", "join", "resign", "compare", "settle", "initdb", "shut", "stop", "start"),
    *("pg-promote", "seal", "open", "follow", "rewind"),
)
"""The steps that need neither trouble nor an operator."""


TIMEOUTS = 24
"""How many timeouts may pass before a shard that does not take writes counts as stuck."""


class Restless(Exception):
    """It goes on and on."""


def rest(world: World, *, late: bool = False, turn: int = 0) -> World:
    """What goes on by itself goes on until nothing changes.

    With `late`, one timeout passes in between, if any is waited for: which, is for `turn` to say.
    """
    budget, world = world.budget, world._replace(budget=())  # nothing goes wrong meanwhile
    for _ in range(300):
        possible = [(what, after) for what, after in _by_itself(world, late) if after != world]
        at_once = [step for step in possible if not step[0].endswith(" late")]
        if not possible:
            return world._replace(budget=budget)
        what, after = at_once[0] if at_once else possible[turn % len(possible)]
        check(after)
        world = after
        if what.endswith(" late"):
            world, late = rest(world), False
    raise Restless("this does not come to rest")


def _by_itself(world: World, late: bool) -> Iterator[Step]:
    # WAL flows faster than sitters decide.
    for what, after in sorted(steps(world), key=lambda step: not step[0].startswith(("flow", "acknowledge"))):
        words = what.split()
        if words[0] not in BY_ITSELF and not words[0].startswith("restore-from"):
            continue
        if words[0] == "start" and not world.peers[NAMES.index(words[1])].up:
            continue
        if late or not what.endswith(" late"):
            yield what, after


def calm(world: World) -> World:
    """Everybody is back, everything is connected, nothing is frozen; and all has come of it that can."""
    world = world._replace(cut=())
    if world.state and world.state.frozen and not world.state.alone:
        world = world._replace(state=world.state._replace(frozen=False), pending=None)
    for me, one in enumerate(world.peers):
        if not one.up:
            world = start(world, me)
        elif one.lag:
            world = with_peer(world, me, lag=None, heard=True)
    world = rest(settle(world))
    for turn in range(TIMEOUTS):
        if stuck(world) is None:
            break
        world = rest(world, late=True, turn=turn)
    return world


def stuck(world: World) -> str | None:
    """Why the shard cannot take writes although all is calm; None if it can."""
    if world.state is None:
        return None
    if can_acknowledge(world, world.state.primary):
        return None
    said = []
    for role, me in (("primary", world.state.primary), ("sync", world.state.sync)):
        if me is not None:
            decision = wish(world, me, late=False).decision
            said.append(f"{role}: {decision.reason} [{decision.waiting_for or 'nothing'}]")
    return re.sub(r"\b[A-E]\b", "_", re.sub(r"\d+/\d+|generation \d+", "_", "; ".join(said)))

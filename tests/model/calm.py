"""When the world stops misbehaving: what goes on by itself, until nothing changes."""

from __future__ import annotations

import re
from collections import Counter
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


AT_ONCE = ("flow", "acknowledge")
"""WAL flows faster than sitters decide."""

AGAIN = 3
"""How often the same may be done because time has passed, before everything else has come to rest."""

LASTS_LONGER = ("stop", "start", "join")
"""To make way, and to come back because nobody took over, is waited for longer than anything else."""

TIMEOUTS = 24
"""How many timeouts may pass before a shard that does not take writes counts as stuck."""


class Restless(Exception):
    """It goes on and on."""


def rest(world: World, *, late: bool = False, turn: int = 0) -> World:
    """What goes on by itself goes on until nothing changes.

    With `late`, timeouts pass before: which first, is for `turn` to say.
    """
    budget, world = world.budget, world._replace(budget=())  # nothing goes wrong meanwhile
    if late:
        world = _wait(world, turn)
    for _ in range(300):
        possible = [after for _, after in _by_itself(world, late=False) if after != world]
        if not possible:
            return world._replace(budget=budget)
        world = possible[0]
        check(world)
    raise Restless("this does not come to rest")


def _wait(world: World, turn: int) -> World:
    """Every timeout that is waited for passes, and what it leads to is done. For a peer for which one has passed, time
    does not go back; the others do meanwhile what they do at once.
    """
    passed: Counter[str] = Counter()
    waited: set[int] = set()
    for _ in range(300):
        possible = [(what, after) for what, after in _by_itself(world, late=True) if after != world]
        timeouts = [step for step in possible if step[0].endswith(" late") and passed[step[0]] < AGAIN]
        timeouts.sort(key=lambda step: step[0].startswith(LASTS_LONGER))
        at_once = [after for what, after in possible if not what.endswith(" late") and _holds(world, what, waited)]
        if at_once:
            world = at_once[0]
        elif timeouts:
            what, world = timeouts[0 if passed else turn % len(timeouts)]
            passed[what] += 1
            waited.add(_actor(what))
        else:
            return world
        check(world)
    raise Restless("this goes on and on, as time passes")


def _holds(world: World, what: str, waited: set[int]) -> bool:
    """The step is not one that the peer would no longer make now that it has waited."""
    me = _actor(what)
    if what.startswith(AT_ONCE) or me not in waited:
        return True
    return wish(world, me, late=False).decision == wish(world, me, late=True).decision


def _actor(what: str) -> int:
    return NAMES.index(what.split()[1])


def _by_itself(world: World, late: bool) -> Iterator[Step]:
    for what, after in sorted(steps(world), key=lambda step: not step[0].startswith(AT_ONCE)):
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

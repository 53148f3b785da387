"""Breadth first through all worlds: every state once, the shortest way to a violation kept."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.model.parts import NAMES, Step, Violation, World, canonical
from tests.model.promises import check
from tests.model.world import steps

Origin = tuple[int, str, list[int] | None] | None
"""The state before, the step, and how the peers were renamed after it."""


@dataclass
class Found:
    """What an exploration came to."""

    states: int = 0
    depth: int = 0
    """How many steps from the beginning everything was looked at."""
    seconds: float = 0.0
    violation: str | None = None
    trace: list[str] = field(default_factory=list)
    """The steps to the violation."""
    samples: list[World] = field(default_factory=list)
    """Some of the states, chosen by chance."""


def explore(
    beginning: World,
    *,
    depth: int,
    states: int = 10**9,
    samples: int = 0,
    moves: Callable[[World], Iterator[Step]] = steps,
) -> Found:
    """All worlds within `depth` steps of the beginning, until there are `states` of them or a promise is broken.

    A state is remembered by 64 bits of it: among ten million the chance that two are taken for one is 1 in 370,000.
    """
    started = time.monotonic()
    first, renamed = canonical(beginning)
    origin: dict[int, Origin] = {hash(first): None}
    level: list[World] = [first]
    found = Found(states=1)
    chance = random.Random(1)  # the same every time
    while level and found.depth < depth and len(origin) < states and not found.violation:
        following: list[World] = []
        for world in level:
            here = hash(world)
            try:
                for what, after in moves(world):
                    after, order = canonical(after)
                    key = hash(after)
                    if key in origin:
                        continue
                    origin[key] = (here, what, order)
                    following.append(after)
                    check(after)
                    if len(found.samples) < samples:
                        found.samples.append(after)
                    elif samples and chance.random() < samples / len(origin):
                        found.samples[chance.randrange(samples)] = after
            except Violation as violation:
                # Broken by the state just reached, or by a step from this one.
                reached = following[-1] if following and _broken(following[-1]) else world
                found.trace = _way(origin, hash(reached), str(violation), renamed)
                found.violation = found.trace.pop()
                break
            if len(origin) >= states:
                break
        level = following
        found.depth += 1
    found.states, found.seconds = len(origin), time.monotonic() - started
    return found


def wander(beginning: World, *, walks: int, length: int, seed: int = 1) -> Found:
    """Random walks, which come further than all worlds can be followed. Trouble comes in one step of six."""
    started, chance, seen, found = time.monotonic(), random.Random(seed), set[int](), Found(depth=length)
    for _ in range(walks):
        world, trace = beginning, list[str]()
        try:
            for _ in range(length):
                possible = [step for step in steps(world) if step[1] != world]
                calm = [step for step in possible if step[1].budget == world.budget]
                if not possible:
                    break
                what, world = chance.choice(calm if calm and chance.randrange(6) else possible)
                trace.append(what)
                check(world)
                seen.add(hash(canonical(world)[0]))
        except Violation as violation:
            found.violation, found.trace = str(violation), trace
            break
    found.states, found.seconds = len(seen), time.monotonic() - started
    return found


def _way(origin: dict[int, Origin], here: int, end: str, renamed: list[int] | None) -> list[str]:
    """The steps to here, every peer called by the name that it had in the beginning; last what was found."""
    way: list[tuple[str, list[int] | None]] = []
    came = origin[here]
    while came is not None:
        here, what, order = came
        way.append((what, order))
        came = origin[here]
    names, said = "".join(NAMES[old] for old in renamed) + NAMES[len(renamed) :] if renamed else NAMES, []
    for what, order in way[::-1]:
        said.append(_said(what, names))
        if order:
            names = "".join(names[old] for old in order) + names[len(order) :]
    return [*said, _said(end, names)]


def _said(what: str, names: str) -> str:
    return re.sub(r"\b[A-E]\b", lambda match: names[NAMES.index(match[0])], what)


def _broken(world: World) -> bool:
    try:
        check(world)
    except Violation:
        return True
    return False

"""What strikes when: a pure function of the seed. The same seed, round and choice of faults give the same schedule.

A strike names its target by role or by number; whom that means is looked up at the moment it strikes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUND = 45.0
"""Seconds in which faults begin; all are healed a little later."""
PAUSES = (1.0, 7.0)
"""Seconds between the beginnings of two strikes: short enough for them to overlap now and then."""


@dataclass(frozen=True)
class Kind:
    """What a schedule has to know of a fault."""

    targets: tuple[str, ...]
    seconds: tuple[float, float]
    """How long it lasts, at least and at most."""
    weight: float = 1.0


@dataclass(frozen=True)
class Strike:
    at: float
    """Seconds from the beginning of the round."""
    fault: str
    target: str
    seconds: float
    chance: int
    """For what the fault leaves to chance, such as which backend."""

    def __str__(self) -> str:
        return f"{self.at:5.1f} s  {self.fault} {self.target}, {self.seconds:.1f} s"


def schedule(seed: int, number: int, kinds: Mapping[str, Kind], length: float = ROUND) -> tuple[Strike, ...]:
    """The strikes of round `number`, in their order.

    Every kind comes up once before one comes up again: which, is drawn over the rounds as from a pack of cards.
    """
    chance = random.Random(f"{seed}/{number}")
    pack = _cards(seed, number, kinds, most=int(length / PAUSES[0]) + 1)
    strikes: list[Strike] = []
    at = chance.uniform(0.5, 2.0)
    while at < length:
        name = pack[len(strikes)]
        kind = kinds[name]
        target, seconds = chance.choice(kind.targets), chance.uniform(*kind.seconds)
        strikes.append(Strike(round(at, 2), name, target, round(seconds, 2), chance.randrange(2**31)))
        at += chance.uniform(*PAUSES)
    return tuple(strikes)


def _cards(seed: int, number: int, kinds: Mapping[str, Kind], most: int) -> Sequence[str]:
    """At least `most` faults: packs of all kinds, each shuffled; every round begins where a new one would be."""
    chance = random.Random(f"{seed}/{number}/cards")
    cards: list[str] = []
    while len(cards) < most:
        pack = sorted(kinds)
        # A weighted shuffle (Efraimidis and Spirakis): the heavier a kind, the earlier it tends to come.
        pack.sort(key=lambda name: -(chance.random() ** (1.0 / kinds[name].weight)))
        cards += pack
    return cards

"""What becomes of a shard when the world calms down: it takes writes, or it is stuck for a reason that is known."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.calm import Restless, calm, stuck
from tests.model.parts import Violation, World

NO_ASYNC = "no async is left, or none that streams, for the sync to take over with: "
GIVEN_UP = "an operator forced a primary, and nobody else has a prefix of its data: manatee-adm rebuild on that peer"
KNOWN = {
    "no database [": "the primary lost its data, and "
    + NO_ASYNC
    + "manatee-adm rebuild on a deposed peer makes it an async",
    "cannot prove that its data": "the primary was restored, and "
    + NO_ASYNC
    + "manatee-adm verify shows who holds what; rebuild the others from that peer",
    "the sync's data are": "primary and sync contradict each other: manatee-adm verify, then rebuild that peer",
    "sync: stopped: the data here have diverged": GIVEN_UP + ", or postgres.rejoin",
    "sync: alarm: the data here are ahead of those of the primary": GIVEN_UP,
    "ZooKeeper holds": "ZooKeeper came back older than it was: restore its data, or set the state by a command",
}
"""Part of the reason in which a shard may stay stuck: the operator's way out."""


def calm_ends(worlds: Iterable[World]) -> dict[str | None, tuple[int, World]]:
    """Why shards stay stuck when the world has calmed down, with how many and the first; None for those that do not."""
    ends: dict[str | None, tuple[int, World]] = {}
    for world in worlds:
        try:
            why = stuck(calm(world))
        except (Restless, Violation) as found:
            why = str(found)
        times, first = ends.get(why, (0, world))
        ends[why] = (times + 1, first)
    return ends

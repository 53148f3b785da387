"""`make model`: every world in turn, as deep as its share of the states goes; then the mutants.

    python -m tests.model [STATES]

Fails if a promise is broken anywhere, if a shard stays stuck when the world has calmed down without a reason that is
known here, or if a mutant survives.
"""

from __future__ import annotations

import sys
import time

from tests.model.explore import explore, wander
from tests.model.liveness import KNOWN, calm_ends
from tests.model.mutants import MUTANTS, judge
from tests.model.world import running
from tests.model.worlds import INVARIANTS, WORLDS

STATES = 1_200_000
"""In all worlds together."""

KINDS = ("crash", "expire", "slow", "mute", "lost", "cut", "pg-crash", "wipe", "lose-data", "operator", "old-snapshot")
"""The trouble of random walks."""

SAMPLES = 400
"""Worlds of each exploration that are calmed down."""


def main(states: int) -> int:
    started, explored, deepest, failed = time.monotonic(), 0, 0, False
    _say("Invariants:", *(f"  {name}" for name in INVARIANTS))
    share = sum(one.share for one in WORLDS)
    for one in WORLDS:
        found = explore(one.beginning(), depth=one.depth, states=states * one.share // share, samples=SAMPLES)
        explored, deepest = explored + found.states, max(deepest, found.depth)
        _say(f"{one.name}: {found.states:,} states, depth {found.depth}, {found.seconds:.0f} s")
        if found.violation:
            failed = True
            _say(f"  VIOLATION: {found.violation}", *(f"    step {step}" for step in found.trace))
        for why, (times, _) in calm_ends(found.samples).items():
            if why is None:
                continue
            way_out = next((out for known, out in KNOWN.items() if known in why), None)
            failed = failed or way_out is None
            _say(f"  stuck in {times} of {len(found.samples)}: {why}", f"    way out: {way_out or 'NONE IS KNOWN'}")
    for peers in (3, 4):
        budget = dict.fromkeys(KINDS, 3) | {"commit": 5, "trouble": 8}
        found = wander(running(peers, **budget), walks=states // 10_000, length=90)
        _say(f"{peers} peers, random walks of {found.depth} steps: {found.states:,} states, {found.seconds:.0f} s")
        if found.violation:
            failed = True
            _say(f"  VIOLATION: {found.violation}", *(f"    step {step}" for step in found.trace))
    survivors = 0
    for mutant in MUTANTS:
        verdict = judge(mutant)
        survivors += verdict.by is None
        _say(f"{'killed' if verdict.by else 'SURVIVED'}: {mutant.name} ({verdict.seconds:.1f} s; {verdict.by})")
    seconds = time.monotonic() - started
    _say(
        f"{explored:,} states, depth up to {deepest}, {len(INVARIANTS)} invariants, "
        f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants killed, {seconds:.0f} s"
    )
    return int(failed or survivors > 0)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else STATES))

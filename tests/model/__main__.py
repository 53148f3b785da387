"""`make model`: every world in turn, as deep as its share of the states goes; then the mutants.

    python -m tests.model [STATES]

Fails if a promise is broken anywhere, if a shard stays stuck when the world has calmed down without a reason that is
known here, or if a mutant survives.
"""

from __future__ import annotations

import sys
import time

from tests.model.explore import explore
from tests.model.liveness import KNOWN, calm_ends
from tests.model.mutants import MUTANTS, judge
from tests.model.worlds import INVARIANTS, WORLDS

STATES = 1_200_000
"""In all worlds together."""

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
    for _line in lines:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else STATES))

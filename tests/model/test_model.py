"""The promises hold in every world that the model reaches, and the model would see it if they did not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.explore import explore
from tests.model.liveness import KNOWN, calm_ends
from tests.model.mutants import MUTANTS, judge
from tests.model.parts import World
from tests.model.promises import check
from tests.model.world import running, steps
from tests.model.worlds import WORLDS, Beginning

STATES = 1_200
"""Of each world here; `make model` goes on to a million in all."""


@pytest.mark.parametrize("one", WORLDS, ids=lambda one: one.name)
def test_every_promise_holds(one: Beginning) -> None:
    found = explore(one.beginning(), depth=one.depth, states=STATES, samples=15)
    assert found.violation is None, "\n".join([str(found.violation), *found.trace])
    for why in calm_ends(found.samples):
        assert why is None or any(known in why for known in KNOWN), why


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found_out(mutant: Any) -> None:
    assert judge(mutant).by is not None


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.beginning], ids=lambda mutant: mutant.name)
def test_the_healthy_core_passes_where_the_mutant_does_not(mutant: Any) -> None:
    found = explore(mutant.beginning(), depth=30, states=300)
    assert found.violation is None, found.trace


class Shard(RuleBasedStateMachine):
    """One long walk. What fails is printed in the scenarios' language, the shortest way that Hypothesis finds."""

    world: World

    @initialize(peers=st.integers(3, 4))
    def begin(self, peers: int) -> None:
        kinds = ("crash", "expire", "slow", "mute", "lost", "cut", "pg-crash", "wipe", "operator", "old-snapshot")
        self.world = running(peers, commit=3, trouble=6, **dict.fromkeys(kinds, 2))
        note(f"> shard {peers}")

    @rule(data=st.data(), trouble=st.integers(0, 5))
    def goes_on(self, data: st.DataObject, trouble: int) -> None:
        """Trouble comes in one step of six, if there is a choice."""
        possible = [step for step in steps(self.world) if step[1] != self.world]
        budget = dict(self.world.budget)
        calm = [step for step in possible if dict(step[1].budget) == budget]
        choices = possible if trouble == 0 or not calm else calm
        if not choices:
            return
        what, self.world = choices[data.draw(st.integers(0, len(choices) - 1))]
        note(f"> step {what}")
        check(self.world)


TestShard = Shard.TestCase
TestShard.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

"""A seed makes a schedule, the same one every time."""

from __future__ import annotations

import click
import pytest

from tests.chaos.__main__ import overrides
from tests.chaos.faults import FAULTS
from tests.chaos.schedule import Kind, schedule

KINDS = {name: fault.kind for name, fault in FAULTS.items()}


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert schedule(7, 3, KINDS) == schedule(7, 3, dict(reversed(KINDS.items())))


def test_other_seeds_and_rounds_make_others() -> None:
    made = [schedule(seed, number, KINDS) for seed in range(3) for number in range(1, 4)]
    assert len(set(made)) == len(made)


def test_every_kind_of_fault_comes_up() -> None:
    struck = {strike.fault for number in range(1, 16) for strike in schedule(1, number, KINDS)}
    assert struck == set(KINDS)


def test_strikes_are_what_their_kind_allows() -> None:
    for number in range(1, 20):
        strikes = schedule(2, number, KINDS, 30.0)
        assert [strike.at for strike in strikes] == sorted(strike.at for strike in strikes)
        assert all(strike.at < 30.0 for strike in strikes)
        for strike in strikes:
            kind: Kind = KINDS[strike.fault]
            assert strike.target in kind.targets
            assert kind.seconds[0] - 0.01 <= strike.seconds <= kind.seconds[1] + 0.01


def test_a_setting_is_toml_and_a_string_may_have_lost_its_quotes() -> None:
    words = ["postgres.rejoin='rewind'", "sitter.evict_dead=false"]
    wanted = {"postgres": {"rejoin": "rewind"}, "sitter": {"evict_dead": False}}
    assert overrides(words) == wanted
    assert overrides([word.replace("'", "") for word in words]) == wanted
    with pytest.raises(click.UsageError):
        overrides(["rewind"])

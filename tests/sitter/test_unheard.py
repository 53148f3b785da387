"""While ZooKeeper cannot be asked nothing is decided: PostgreSQL goes on as it was told last, or is fenced as that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog

from sitter.daemon import Daemon
from sitter.postgres.queries import Facts
from sitter.view import Keep, Primary, Standby, Stopped, Wanted
from tests.core.views import A, B, C, view
from tests.sitter.test_fence import NOBODY, SESSION, streaming


@dataclass
class Told:
    """Stands in for the transitions: what PostgreSQL was told last."""

    wanted: Wanted

    def want(self, wanted: Wanted) -> None:
        self.wanted = wanted


@dataclass
class Seen:
    """Stands in for the watch, the settings and the coordination, as far as they are asked."""

    facts: Facts | None
    disconnected_for: float = SESSION + 1
    session_timeout: float = SESSION
    unidentified: str | None = None
    zookeeper: Any = field(init=False)

    def __post_init__(self) -> None:
        self.zookeeper = self


def unheard(told: Told, seen: Seen) -> Daemon:
    """A daemon that was the primary by what it heard last, and hears nothing now."""
    daemon = Daemon.__new__(Daemon)
    parts: dict[str, Any] = {"_transitions": told, "_watch": seen, "_settings": seen, "_coordination": seen}
    parts |= {"_view": view(A), "_fenced": False, "_unidentified": None, "_log": structlog.get_logger()}
    for name, part in parts.items():
        setattr(daemon, name, part)
    daemon._go_on_unheard()
    return daemon


def test_a_primary_that_hears_nobody_is_fenced_as_the_primary_that_it_was_told_to_be() -> None:
    """With the sync, and the seal, that it was told last."""
    for wanted in (Primary(B), Primary(C), Primary(B, sealed=True)):
        told = Told(wanted)
        unheard(told, Seen(NOBODY))
        assert told.wanted == Primary(wanted.sync, sealed=wanted.sealed, fenced=True)


@pytest.mark.parametrize("wanted", [Stopped(), Stopped(clean=True), Standby(B), Standby(None, sealed=True), Keep()])
def test_what_was_not_told_to_run_as_primary_is_left_alone(wanted: Wanted) -> None:
    """The state may name it primary: one that had to stop, because it lacks proof, is not started to be fenced."""
    told = Told(wanted)
    unheard(told, Seen(NOBODY))
    assert told.wanted == wanted


def test_the_fence_comes_down_when_the_sync_streams_again() -> None:
    told = Told(Primary(B))
    daemon = unheard(told, Seen(NOBODY))
    assert told.wanted == Primary(B, fenced=True)
    cast(Any, daemon)._watch.facts = streaming(B)
    daemon._go_on_unheard()
    assert told.wanted == Primary(B)


def test_before_anything_was_heard_nothing_is_fenced() -> None:
    told = Told(Primary(B))
    daemon = unheard(told, Seen(streaming(B)))
    cast(Any, daemon)._view = None
    cast(Any, daemon)._watch.facts = NOBODY
    daemon._go_on_unheard()
    assert told.wanted == Primary(B)

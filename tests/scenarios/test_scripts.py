"""The scenarios come to what is written in them."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.model import parts
from tests.scenarios.script import happen, run

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_comes_to_its_outcomes(path: Path) -> None:
    written, found = path.read_text(), run(path.read_text())
    changes = difflib.unified_diff(written.splitlines(), found.splitlines(), "written", "found", lineterm="")
    assert written == found, "\n".join(changes)


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 12


def test_a_broken_world_would_be_seen() -> None:
    """The runner checks every step: a driver that seals too low is found out by the first takeover."""
    parts.broken.add("sealed at the momentary replay position")
    try:
        shard = happen(happen(None, "shard 3"), "commit A")
        with pytest.raises(parts.Violation, match="promise 1"):
            happen(happen(shard, "crash A"), "expire A")
    finally:
        parts.broken.clear()

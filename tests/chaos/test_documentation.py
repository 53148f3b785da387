"""docs/chaos.md names every fault, and what it is meant to bite."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import FAULTS


def test_every_fault_is_described() -> None:
    text = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text()
    for name, fault in FAULTS.items():
        assert f"| `{name}` | {', '.join(dict.fromkeys(fault.kind.targets))} | {fault.bites} |" in text

"""What a run leaves for people: the timeline, one line for each event; a picture of it; and the logs if need be."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.chaos import checker
from tests.chaos.history import operations
from tests.chaos.lab import Lab
from tests.chaos.picture import draw
from tests.chaos.rounds import Result, summary


def write_report(output: Path, lab: Lab, result: Result) -> None:
    """Must be called while the lab's files are there."""
    result.operations = operations(lab.histories)
    pauses = [event.at for event in lab.journal.events if event.kind == "pause"]
    for outage in checker.outages(result.operations, pauses=pauses):
        text = f"nothing was acknowledged for {outage.seconds:.2f} s"
        lab.journal.note("outage", "shard", text, at=outage.began, seconds=outage.seconds)
    events = sorted(lab.journal.events, key=lambda event: event.at)
    lines = [f"seed {result.seed}: {summary(result)}", *map(str, result.findings), "", *map(lab.journal.line, events)]
    (output / "timeline.txt").write_text("\n".join(lines) + "\n")
    picture = draw(lines[0], [lab.node(peer) for peer in lab.peers], events, result.operations)
    (output / "picture.svg").write_text(picture)
    for path in lab.histories:
        shutil.copy(path, output)
    if result.findings or not result.rounds:
        for peer in lab.peers:
            for log in peer.directory.glob("*.log"):
                shutil.copy(log, output / f"{lab.node(peer)}-{log.name}")

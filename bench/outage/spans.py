"""Where the time of an outage went, by what the sitters have logged."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path

LONGEST = 220
"""Characters of a line."""


def spans(logs: Iterable[tuple[str, Path]], clock: float, moment: float, began: float, ended: float) -> list[str]:
    """What was logged from a little before the event until a little after the outage, by time.

    `logs` are peers' labels and log files; the event happened at `clock` (seconds since the epoch), which is `moment`
    on the monotonic clock, and the outage lasted from `began` to `ended` on that.
    """
    found = [
        (began - moment, "client", "the last write is acknowledged"),
        (ended - moment, "client", "the first write is acknowledged"),
    ]
    for label, log in logs:
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                at = dt.datetime.fromisoformat(entry.pop("timestamp")).timestamp() - clock
                if -0.1 < at < ended - moment + 0.3:
                    found.append((at, label, _words(entry)))
    return [f"{at * 1000:9.1f} ms  {who:8}  {what}" for at, who, what in sorted(found)]


def _words(entry: dict[str, object]) -> str:
    """Without the paths of this machine."""
    event = entry.pop("event", "")
    told = {key: str(value) for key, value in entry.items() if key not in ("peer", "level") and value}
    values = " ".join(f"{key}={value}" for key, value in told.items() if not value.startswith("/"))
    return f"{event}  {values}".rstrip()[:LONGEST]

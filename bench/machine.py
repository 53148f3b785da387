"""What a figure was measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path

from demo.postgresql import choose


def describe() -> str:
    """The machine, the versions and the day, in one line."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    day = dt.datetime.now(dt.UTC).date()
    load = os.getloadavg()[0]
    return (
        f"{day}, {os.cpu_count()} x {processor}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {choose()}, load {load:.1f} at the end"
    )

"""A daemon with a clock that can be set, or broken on purpose: `python -m tests.chaos.launch OPTION... DAEMON ARG...`.

    --clock FILE    time.time() is off by the seconds that the file says, in libfaketime's words ("+3600")
    --broken NAME   with what `tests.chaos.broken` has under this name

libfaketime itself does not do for Python: under it time.sleep() fails, since it takes an absolute monotonic time for
one of the clock that it fakes. PostgreSQL gets it; see `tests.chaos.lab`.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

MODULES = {
    "sitter": "sitter.main",
    "backupserver": "backupserver.main",
    "snapshotter": "backupserver.snapshotter",
}
CACHED = 0.5
"""Seconds for which the file is not read again."""


def set_clock(file: Path) -> None:
    """From now on the time of day is as the file says; the monotonic clock is left alone."""
    real, real_ns, monotonic = time.time, time.time_ns, time.monotonic
    offset, read_at = 0, -CACHED

    def off() -> int:
        nonlocal offset, read_at
        if monotonic() - read_at >= CACHED:
            offset, read_at = int(file.read_text() or "0"), monotonic()
        return offset

    time.time = lambda: real() + off()
    time.time_ns = lambda: real_ns() + off() * 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--broken")
    parser.add_argument("daemon", choices=MODULES)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.clock:
        set_clock(given.clock)
    module = import_module(MODULES[given.daemon])
    if given.broken:
        import_module("tests.chaos.broken").BROKEN[given.broken].install()
    sys.argv = [f"manatee-{given.daemon}", *given.arguments]
    module.main()


if __name__ == "__main__":
    main()

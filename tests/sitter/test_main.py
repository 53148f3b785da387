"""The sitter as a process: bad settings get one sentence, and a loop that stalls ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SITTER = Path(sys.executable).parent / "manatee-sitter"


def test_settings_that_cannot_be_used_end_it_with_one_sentence(tmp_path: Path) -> None:
    settings = tmp_path / "manatee.toml"
    settings.write_text('[shard]\nname = "no spaces please"\n')
    ended = subprocess.run([SITTER, "-c", settings], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 96, "SMF puts it into maintenance, instead of starting it every second"
    assert ended.stderr.count("\n") == 1
    assert "shard.name" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("stall", "status"), [(3.0, 70), (0.2, 0)], ids=["stalled", "busy for a moment"])
def test_a_loop_that_stalls_ends_the_process(stall: float, status: int) -> None:
    """kazoo's threads would keep the session alive: the shard would wait for ever for a sitter that does nothing."""
    program = f"""
import time
from sitter.main import _watch

class Daemon:
    turned_at = time.monotonic()

daemon = Daemon()
_watch(daemon, 0.5)
ends = time.monotonic() + 2
time.sleep({stall})
while time.monotonic() < ends:
    daemon.turned_at = time.monotonic()
    time.sleep(0.05)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, "has not turned" in ended.stderr) == (status, status != 0)


def test_a_daemon_takes_in_nothing_that_only_a_terminal_needs() -> None:
    program = "import sys, sitter.main; print([name for name in ('rich', 'pygments') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "[]\n"
